"""What does the service answer? The shapes of its JSON, for readers; times are RFC 3339 in UTC.

A test holds each against the service's OpenAPI document.
"""

from typing import Any, TypedDict

from care_sweep.spec import Scalar

__all__ = [
    "Attempt",
    "Best",
    "Checkpoint",
    "Cluster",
    "Comparison",
    "Event",
    "Importance",
    "Measurement",
    "Node",
    "RankedTrial",
    "Resolved",
    "Spent",
    "Sweep",
    "SweepSummary",
    "Trial",
    "TrialDetail",
    "WaitingPoint",
]


class SweepSummary(TypedDict):
    """A sweep as it stands in a list; `trial_counts` holds the trials that exist so far, by state."""

    id: str
    name: str
    owner: str
    state: str
    reason: str | None
    message: str | None
    space: str
    metric: str
    num_trials: int
    trial_counts: dict[str, int]
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: dict[str, str]


class Spent(TypedDict):
    """What counts against a sweep's budget: seconds it was driven, GPU hours of its stored epochs."""

    seconds: float
    gpu_hours: float


class WaitingPoint(TypedDict):
    """A configuration that was enqueued and has no trial yet."""

    sequence: int
    parameters: dict[str, Scalar]


class Sweep(SweepSummary):
    """A sweep with the whole document it runs (`SweepSpec`); of what was `enqueued` the next is first."""

    revision: int
    spent: Spent
    enqueued: list[WaitingPoint]
    spec: dict[str, Any]


class Resolved(TypedDict):
    """A submission that would be accepted, with every default and the whole space written out."""

    spec: dict[str, Any]


class Checkpoint(TypedDict):
    sha256: str
    size_bytes: int


class Trial(TypedDict):
    """One configuration; `value` is set once COMPLETE, `metrics` are those of `last_epoch`."""

    number: int
    parameters: dict[str, Scalar]
    is_baseline: bool
    state: str
    reason: str | None
    message: str | None
    value: float | None
    attempt: int
    last_epoch: int
    metrics: dict[str, float]
    checkpoint: Checkpoint | None
    started_at: str | None
    finished_at: str | None
    links: dict[str, str | None]


class Attempt(TypedDict):
    """One execution of a trial, why it ended, and where Ray's dashboard shows it and its log, if it does."""

    attempt: int
    started_at: str
    finished_at: str | None
    reason: str | None
    message: str | None
    dashboard_url: str | None
    log_url: str | None


class TrialDetail(Trial):
    attempts: list[Attempt]


class Measurement(TypedDict):
    """What one epoch reported; `seconds` is the training time it took."""

    epoch: int
    attempt: int
    metrics: dict[str, float]
    seconds: float
    recorded_at: str


class RankedTrial(TypedDict):
    """A COMPLETE trial, its place (1 is best) and the standard error of its value."""

    rank: int
    number: int
    values: dict[str, Scalar]
    is_baseline: bool
    value: float
    standard_error: float


class Comparison(TypedDict):
    """The best searched trial beside one baseline: `difference` = best - baseline, and what to make of it."""

    baseline_number: int
    baseline_value: float
    best_number: int
    best_value: float
    difference: float
    standard_error: float
    note: str


class Importance(TypedDict):
    """How much each parameter mattered, or the reason why that cannot be said."""

    method: str
    num_trials: int
    importances: dict[str, float] | None
    reason: str | None


class Best(TypedDict):
    """The best configurations beside the baselines; `evidence` says what they are worth."""

    metric: str
    configurations: list[RankedTrial]
    baselines: list[RankedTrial]
    comparisons: list[Comparison]
    importance: Importance
    evidence: str


class Event(TypedDict):
    """One change of a sweep; `kind` is sweep, trial or measurement."""

    sequence: int
    kind: str
    recorded_at: str
    data: dict[str, Any]


class Node(TypedDict):
    id: str
    host: str
    is_alive: bool
    resources: dict[str, float]


class Cluster(TypedDict):
    """What a runner last saw of the Ray cluster; empty where none has reported."""

    reported_at: str | None
    age_seconds: float | None
    runner: str | None
    ray_version: str | None
    dashboard_url: str | None
    nodes: list[Node]
    resources: dict[str, float]
    available: dict[str, float]
