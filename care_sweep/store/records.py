"""What the store answers with: frozen rows. Times are seconds since 1970 in UTC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from care_sweep.spec import CheckpointReference, Place, Scalar, Spot, SweepSpec, SweepState, TrialState

__all__ = [
    "UNLIMITED",
    "AttemptRecord",
    "AuditRecord",
    "Caller",
    "ClusterRecord",
    "DemandRecord",
    "EventRecord",
    "HoldRecord",
    "MeasurementRecord",
    "OutcomeRecord",
    "Page",
    "Quota",
    "Scope",
    "SweepRecord",
    "TokenRecord",
    "TrialRecord",
    "Wishes",
]

_T = TypeVar("_T")


class Scope(StrEnum):
    """What a token may do.

    READ sees its owner's sweeps, SUBMIT makes and steers them too, ADMIN sees and steers everybody's. METRICS
    sees the figures of the whole installation and nothing else.
    """

    METRICS = "metrics"
    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, other: "Scope") -> bool:
        """ADMIN includes all, SUBMIT also READ."""
        return self is other or self is Scope.ADMIN or (self, other) == (Scope.SUBMIT, Scope.READ)


@dataclass(frozen=True)
class Caller:
    """Who asks: the owner and scope of a token; without `token_id` whoever reaches what asks for no token."""

    owner: str
    scope: Scope
    token_id: str | None = None


@dataclass(frozen=True)
class Quota:
    """What the sweeps that a token submitted may take together; None is without limit.

    Attributes:
        max_sweeps: that have not ended.
        max_concurrent_trials: that run, in all of them.
        max_gpu_hours: of stored epochs, since the token was made.
    """

    max_sweeps: int | None = None
    max_concurrent_trials: int | None = None
    max_gpu_hours: float | None = None


UNLIMITED = Quota()


@dataclass(frozen=True)
class TokenRecord:
    """A token as it is kept, without the secret; `expires_at` None is never.

    `gpu_seconds` are those of the sweeps it submitted, deleted ones too.
    """

    id: str
    owner: str
    scope: Scope
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    quota: Quota = UNLIMITED
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class AuditRecord:
    """Who did what; `outcome` is the state that the subject had then."""

    sequence: int
    recorded_at: float
    owner: str
    token_id: str | None
    action: str
    subject: str
    outcome: str


@dataclass(frozen=True)
class Page(Generic[_T]):
    """Some rows, and the token that asks for the next ones (None at the end)."""

    items: Sequence[_T]
    next_token: str | None


@dataclass(frozen=True)
class HoldRecord:
    """Who holds a sweep that has not ended, if anybody does, and what a runner needs to know of it."""

    id: str
    state: SweepState
    reason: str | None
    lease_owner: str | None
    fencing_token: int
    lease_counter: int
    priority: float

    @property
    def is_cancelled(self) -> bool:
        """A user wants it to end now."""
        return self.state is SweepState.STOPPING and self.reason == "cancelled"


@dataclass(frozen=True)
class SweepRecord:
    """One accepted sweep. `fencing_token` counts its claims, `lease_counter` its owner's signs of life,
    `revision` the wishes of users; what was spent is that of drivers and of stored epochs, `num_images` are
    those trained on in them; `gpus_per_trial` is what was chosen where the document says `auto`, `token_id`
    that of the token that submitted it; `is_ready` while its driver can begin trials; `queued_at` is when it
    began to wait for a driver last; `enqueued` as in `Wishes`, None in a list, which reads no queues."""

    id: str
    name: str
    spec: SweepSpec
    state: SweepState
    reason: str | None
    message: str | None
    created_at: float
    queued_at: float
    started_at: float | None
    finished_at: float | None
    lease_owner: str | None
    fencing_token: int
    lease_counter: int
    revision: int
    active_seconds: float
    gpu_seconds: float
    search_seconds: float
    num_images: int
    owner: str
    token_id: str | None
    gpus_per_trial: float | None
    share_seconds: float
    priority: float
    is_ready: bool
    trial_counts: Mapping[TrialState, int]
    enqueued: Mapping[int, Mapping[str, Scalar]] | None


@dataclass(frozen=True)
class DemandRecord:
    """What an active sweep wants of the cluster, and what it has had.

    Attributes:
        gpus_per_trial: None where its document says `auto` and nothing was chosen yet.
        num_wanted: trials that could run at once, those that do included.
        num_running: trials that do.
        places: how many of them on which GPUs of which node; of one that has just begun it is not known yet.
        share_seconds: what it has held, as a share of the cluster, over its priority.
        token_id: of the token that submitted it, if one did.
        max_concurrent_trials: of all sweeps of that token together, if it has such a quota.
        is_quota_spent: its token's GPU hours are.
    """

    id: str
    priority: float
    cpus_per_trial: int
    gpus_per_trial: float | None
    num_wanted: int
    num_running: int
    places: Mapping[Spot, int]
    share_seconds: float
    token_id: str | None
    max_concurrent_trials: int | None
    is_quota_spent: bool


@dataclass(frozen=True)
class Wishes:
    """What users want of a sweep, as its driver reads it.

    Attributes:
        stop_requested: numbers of open trials that shall end.
        enqueued: points that no trial was made of yet, by their sequence, first to last.
    """

    revision: int
    state: SweepState
    reason: str | None
    spec: SweepSpec
    stop_requested: frozenset[int]
    enqueued: Mapping[int, Mapping[str, Scalar]]


@dataclass(frozen=True)
class TrialRecord:
    """One configuration; `value` is set when COMPLETE, `metrics` are those of `last_epoch`."""

    sweep_id: str
    number: int
    parameters: Mapping[str, Scalar]
    is_baseline: bool
    state: TrialState
    reason: str | None
    message: str | None
    value: float | None
    attempt: int
    last_epoch: int
    metrics: Mapping[str, float]
    checkpoint: CheckpointReference | None
    started_at: float | None
    finished_at: float | None
    is_stop_requested: bool


@dataclass(frozen=True)
class OutcomeRecord:
    """How a trial ended, and no more of it; `value` is set when COMPLETE."""

    number: int
    parameters: Mapping[str, Scalar]
    is_baseline: bool
    state: TrialState
    value: float | None


@dataclass(frozen=True)
class AttemptRecord:
    """One execution of a trial, why it ended, and where it ran if a worker has said so."""

    attempt: int
    started_at: float
    finished_at: float | None
    reason: str | None
    message: str | None
    place: Place | None = None


@dataclass(frozen=True)
class MeasurementRecord:
    """What one epoch reported; `seconds` is its training time."""

    trial_number: int
    epoch: int
    attempt: int
    metrics: Mapping[str, float]
    seconds: float
    recorded_at: float


@dataclass(frozen=True)
class EventRecord:
    """One change of a sweep, written in the transaction that made the change."""

    sequence: int
    sweep_id: str
    kind: str
    data: Mapping[str, Any]
    recorded_at: float


@dataclass(frozen=True)
class ClusterRecord:
    """What a runner last saw of its Ray cluster.

    `is_known` says whether that can still be so: a runner tells every 5 s. Of a cluster that none has told of
    for a minute nobody knows whether it is there, and another's process may have its ports.
    """

    runner: str
    report: Mapping[str, Any]
    reported_at: float
    is_known: bool
