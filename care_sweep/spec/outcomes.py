"""Where does a sweep or a trial stand, and what has an epoch reported?"""

from enum import StrEnum

from pydantic import Field

from care_sweep.documents import Document

__all__ = ["CheckpointReference", "Measurement", "Place", "Spot", "SweepState", "TrialState"]

Spot = tuple[str, tuple[str, ...]]
"""A node of a Ray cluster, and which of its GPUs, none where that is not known; both as Ray names them."""


class SweepState(StrEnum):
    """Where a sweep stands. SUCCEEDED, FAILED and CANCELLED are ends; the first two reopen when extended."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self in (SweepState.SUCCEEDED, SweepState.FAILED, SweepState.CANCELLED)


class TrialState(StrEnum):
    """Where a trial stands. A terminal state never changes; only COMPLETE trials rank."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"
    INFEASIBLE = "INFEASIBLE"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self not in (TrialState.WAITING, TrialState.RUNNING)


class CheckpointReference(Document):
    """A checkpoint that is durable: its name below the trial's directory, SHA-256 and size."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Place(Document):
    """Where in Ray an attempt runs: its names of the actor, its node and, if any, its log and GPUs."""

    actor_id: str = Field(pattern=r"^[0-9a-f]{1,64}$")
    node_id: str = Field(pattern=r"^[0-9a-f]{1,64}$")
    log_name: str | None = Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")
    gpus: tuple[str, ...] = Field((), strict=False)  # a list in JSON; older programs said nothing of them

    @property
    def spot(self) -> Spot:
        return self.node_id, self.gpus


class Measurement(Document):
    """What one epoch reported: finite metrics, its seconds with evaluation, perhaps a checkpoint.

    Attributes:
        num_images: that were trained on in those seconds.
    """

    epoch: int = Field(ge=1)
    metrics: dict[str, float]
    seconds: float = Field(ge=0)
    num_images: int = Field(0, ge=0)
    checkpoint: CheckpointReference | None = None
