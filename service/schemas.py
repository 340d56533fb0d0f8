"""What do answers look like? The models of the API, built from the store's records here and only here."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self

from fastapi import Response
from pydantic import BaseModel, Field

from care_sweep.documents import Document
from care_sweep.search.analysis import Comparison, Importance, RankedTrial
from care_sweep.spec import Budget, Place, Scalar, SearchSpace, SweepSpec, SweepState, TrialState
from care_sweep.store import (
    AttemptRecord,
    ClusterRecord,
    EventRecord,
    MeasurementRecord,
    SweepRecord,
    TrialRecord,
)

__all__ = [
    "Attempt",
    "Best",
    "Checkpoint",
    "Cluster",
    "EnqueuedPoint",
    "Event",
    "Measurement",
    "Measurements",
    "Node",
    "Resolved",
    "SearchSpaces",
    "Status",
    "Sweep",
    "SweepChange",
    "SweepDocument",
    "SweepPage",
    "SweepSummary",
    "Trial",
    "TrialDetail",
    "TrialPage",
    "WaitingPoint",
]


class SweepDocument(SweepSpec):
    """What a submission says: a sweep whose space is a document or the name of a search space."""

    space: SearchSpace | str  # type: ignore[assignment]  # documents the request, parses nothing


class Resolved(BaseModel):
    """A submission that would be accepted, with every default and the whole space written out."""

    spec: SweepSpec


class SweepLinks(BaseModel):
    self: str
    trials: str
    events: str
    best: str

    @classmethod
    def of(cls, sweep_id: str) -> Self:
        here = f"/v1/sweeps/{sweep_id}"
        return cls(self=here, trials=f"{here}/trials", events=f"{here}/events", best=f"{here}/best")


class SweepSummary(BaseModel):
    """A sweep as it stands in a list."""

    id: str
    name: str
    owner: str = Field(description="of the token that submitted it")
    state: SweepState
    reason: str | None
    message: str | None
    space: str
    metric: str
    num_trials: int
    trial_counts: dict[TrialState, int] = Field(description="trials that exist so far, by state")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: SweepLinks

    @classmethod
    def fields_of(cls, record: SweepRecord) -> dict[str, Any]:
        return {
            "id": record.id,
            "name": record.name,
            "owner": record.owner,
            "state": record.state,
            "reason": record.reason,
            "message": record.message,
            "space": record.spec.space.name,
            "metric": record.spec.metric,
            "num_trials": record.spec.num_trials,
            "trial_counts": record.trial_counts,
            "created_at": _time(record.created_at),
            "started_at": _time(record.started_at),
            "finished_at": _time(record.finished_at),
            "links": SweepLinks.of(record.id),
        }

    @classmethod
    def of(cls, record: SweepRecord) -> Self:
        return cls(**cls.fields_of(record))


class Spent(BaseModel):
    """What counts against a sweep's budget: seconds it was driven, GPU hours of its stored epochs."""

    seconds: float
    gpu_hours: float


class WaitingPoint(BaseModel):
    """A configuration that was enqueued and has no trial yet; `sequence` is its own among all of them."""

    sequence: int
    parameters: dict[str, Scalar]


class Sweep(SweepSummary):
    """A sweep with the whole document it runs."""

    revision: int = Field(description="counts what users have changed; its ETag")
    spent: Spent
    enqueued: list[WaitingPoint] = Field(description="what users enqueued, the next one first")
    spec: SweepSpec

    @classmethod
    def of(cls, record: SweepRecord) -> Self:
        spent = Spent(seconds=record.active_seconds, gpu_hours=record.gpu_seconds / 3600)
        assert record.enqueued is not None, "a list shows summaries"
        points = [
            WaitingPoint(sequence=sequence, parameters=dict(parameters))
            for sequence, parameters in record.enqueued.items()
        ]
        return cls(
            **cls.fields_of(record),
            revision=record.revision,
            spent=spent,
            enqueued=points,
            spec=record.spec,
        )

    @classmethod
    def tagged(cls, record: SweepRecord, response: Response) -> Self:
        """The sweep, with its revision as the answer's ETag."""
        response.headers["ETag"] = f'"{record.revision}"'
        return cls.of(record)


class SweepChange(Document):
    """What may be changed of a sweep that is there; what is left out stays, null takes a limit away."""

    num_trials: int | None = Field(None, description="baselines included; not null")
    max_concurrent_trials: int | None = None
    budget: Budget | None = None
    priority: float | None = Field(None, description="not null")


class EnqueuedPoint(Document):
    """A configuration to try; a parameter that is left out is at its default."""

    parameters: dict[str, Scalar]


class SweepPage(BaseModel):
    """Some sweeps, newest first, and the token of the next page (null at the end)."""

    sweeps: list[SweepSummary]
    next_page_token: str | None


class Checkpoint(BaseModel):
    """A checkpoint that can be downloaded."""

    sha256: str
    size_bytes: int


class TrialLinks(BaseModel):
    self: str
    sweep: str
    measurements: str
    logs: str
    checkpoint: str | None

    @classmethod
    def of(cls, record: TrialRecord) -> Self:
        sweep = f"/v1/sweeps/{record.sweep_id}"
        here = f"{sweep}/trials/{record.number}"
        return cls(
            self=here,
            sweep=sweep,
            measurements=f"{here}/measurements",
            logs=f"{here}/logs",
            checkpoint=f"{here}/checkpoint" if record.checkpoint else None,
        )


class Trial(BaseModel):
    """One configuration and what has become of it."""

    number: int
    parameters: dict[str, Scalar]
    is_baseline: bool
    state: TrialState
    reason: str | None
    message: str | None
    value: float | None = Field(description="the metric after the last scheduled epoch, once COMPLETE")
    attempt: int
    last_epoch: int
    metrics: dict[str, float] = Field(description="what the last epoch reported")
    checkpoint: Checkpoint | None
    started_at: datetime | None
    finished_at: datetime | None
    links: TrialLinks

    @classmethod
    def fields_of(cls, record: TrialRecord) -> dict[str, Any]:
        stored = record.checkpoint
        return {
            "number": record.number,
            "parameters": record.parameters,
            "is_baseline": record.is_baseline,
            "state": record.state,
            "reason": record.reason,
            "message": record.message,
            "value": record.value,
            "attempt": record.attempt,
            "last_epoch": record.last_epoch,
            "metrics": record.metrics,
            "checkpoint": stored and Checkpoint(sha256=stored.sha256, size_bytes=stored.size_bytes),
            "started_at": _time(record.started_at),
            "finished_at": _time(record.finished_at),
            "links": TrialLinks.of(record),
        }

    @classmethod
    def of(cls, record: TrialRecord) -> Self:
        return cls(**cls.fields_of(record))


class Attempt(BaseModel):
    """One execution of a trial, why it ended, and where Ray's dashboard shows it.

    The dashboard knows it while its cluster lives; the URLs, below `/ray/` of the service, are null before a
    worker has begun, and where that shows another cluster or, for no runner tells of one, none.
    """

    attempt: int
    started_at: datetime
    finished_at: datetime | None
    reason: str | None
    message: str | None
    dashboard_url: str | None = Field(description="of the actor that runs it, or ran it")
    log_url: str | None = Field(description="of what the actor's process has printed")

    @classmethod
    def of(cls, record: AttemptRecord, cluster: ClusterRecord | None) -> Self:
        actor, log = _shown_by_ray(record.place, cluster)
        return cls(
            attempt=record.attempt,
            started_at=_moment(record.started_at),
            finished_at=_time(record.finished_at),
            reason=record.reason,
            message=record.message,
            dashboard_url=actor,
            log_url=log,
        )


class TrialDetail(Trial):
    """A trial with each of its executions, first to last."""

    attempts: list[Attempt]

    @classmethod
    def with_attempts(
        cls, record: TrialRecord, attempts: Sequence[AttemptRecord], cluster: ClusterRecord | None
    ) -> Self:
        return cls(**cls.fields_of(record), attempts=[Attempt.of(one, cluster) for one in attempts])


class TrialPage(BaseModel):
    """Some trials by number, and the token of the next page (null at the end)."""

    trials: list[Trial]
    next_page_token: str | None


class Measurement(BaseModel):
    """What one epoch reported; `seconds` is the training time it took."""

    epoch: int
    attempt: int
    metrics: dict[str, float]
    seconds: float
    recorded_at: datetime


class Measurements(BaseModel):
    """Every measurement of a trial, by epoch."""

    measurements: list[Measurement]

    @classmethod
    def of(cls, records: Sequence[MeasurementRecord]) -> Self:
        shown = [
            Measurement(
                epoch=record.epoch,
                attempt=record.attempt,
                metrics=dict(record.metrics),
                seconds=record.seconds,
                recorded_at=_moment(record.recorded_at),
            )
            for record in records
        ]
        return cls(measurements=shown)


class Best(BaseModel):
    """What a sweep has found so far; only COMPLETE trials rank."""

    metric: str
    configurations: list[RankedTrial] = Field(description="the best, baselines among them")
    baselines: list[RankedTrial] = Field(description="by number")
    comparisons: list[Comparison] = Field(description="the best searched configuration against each baseline")
    importance: Importance
    evidence: str = Field(description="what all this is worth, in words")


class Event(BaseModel):
    """One change of a sweep; `kind` is sweep, trial or measurement."""

    sequence: int
    kind: str
    recorded_at: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, record: EventRecord) -> Self:
        return cls(
            sequence=record.sequence,
            kind=record.kind,
            recorded_at=_moment(record.recorded_at),
            data=dict(record.data),
        )


class SearchSpaces(BaseModel):
    """The search spaces that have a name."""

    search_spaces: list[SearchSpace]


class Node(BaseModel):
    id: str
    host: str
    is_alive: bool
    resources: dict[str, float] = Field(description="cpus, gpus, memory_bytes, object_store_bytes")


class Cluster(BaseModel):
    """What a runner sees of the Ray cluster; empty where none tells of one.

    A report that is too old to be true says only whose it was and when it came.
    """

    reported_at: datetime | None = None
    age_seconds: float | None = None
    runner: str | None = None
    ray_version: str | None = None
    dashboard_url: str | None = None
    nodes: list[Node] = []
    resources: dict[str, float] = {}
    available: dict[str, float] = {}

    @classmethod
    def of(cls, record: ClusterRecord, now: float) -> Self:
        return cls(
            reported_at=_moment(record.reported_at),
            age_seconds=round(max(0.0, now - record.reported_at), 3),
            runner=record.runner,
            **(_reported(record) if record.is_known else {}),
        )


_REPORTED = ("ray_version", "dashboard_url", "nodes", "resources", "available")


def _reported(record: ClusterRecord) -> dict[str, Any]:
    return {key: value for key, value in record.report.items() if key in _REPORTED and value is not None}


class Status(BaseModel):
    """That the service runs (`healthz`) or can work (`readyz`)."""

    status: str
    version: str


def _shown_by_ray(place: Place | None, cluster: ClusterRecord | None) -> tuple[str | None, str | None]:
    """The pages of an actor and of its log, where `/ray/` shows the cluster with its node."""
    if place is None or cluster is None or not cluster.is_known:
        return None, None
    has_its_node = any(node["id"] == place.node_id for node in cluster.report.get("nodes", ()))
    if not has_its_node or not cluster.report.get("dashboard_url"):
        return None, None
    log = f"/ray/#/logs/viewer?nodeId={place.node_id}&fileName={place.log_name}"
    return f"/ray/#/actors/{place.actor_id}", log if place.log_name else None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
