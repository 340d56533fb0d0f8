"""What can go wrong, as one tree.

CareSweepError
├── InvalidDocument        a document that cannot be accepted: every problem, with its place, value and remedy
├── DatasetError           images that are missing, unreadable or unfit for training
├── CheckpointError        a checkpoint that is missing, damaged or of another format
│   └── StateDamaged       a training state that nothing can go on from
├── TrialDiverged          a training loss that is no longer finite
├── TrialCollapsed         embeddings that are all at one point
├── RankLost               a process that trained a trial with others is gone
├── NotFound               no such sweep, trial, space or checkpoint
├── Conflict               the request does not fit the present state
│   └── RequestUnderWay    the same request has not been answered yet
├── QuotaExceeded          a token's sweeps may take no more
├── RevisionMismatch       somebody else has changed what the request was about
├── IdempotencyKeyReused   an Idempotency-Key that came with another body before
├── LeaseLost              another driver owns the sweep now; nothing was written
├── DatabaseError          the database is too new, damaged or out of reach
│   ├── DatabaseDamaged        its file is not as it was written
│   └── DatabaseUnavailable    it cannot do at present what was asked; the same may work in a while
│       ├── DatabaseBusy       somebody else holds what a write needs
│       └── DatabaseFull       there is no room for a write
├── ClusterExposed         the Ray cluster lets anybody in, or others can read its token
├── StorageError           the storage of checkpoints and logs is out of reach, full, or refuses
└── ServiceError           the client's view of a refusal or of a service out of reach
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "CareSweepError",
    "CheckpointError",
    "ClusterExposed",
    "Conflict",
    "DatabaseBusy",
    "DatabaseDamaged",
    "DatabaseError",
    "DatabaseFull",
    "DatabaseUnavailable",
    "DatasetError",
    "IdempotencyKeyReused",
    "InvalidDocument",
    "LeaseLost",
    "NotFound",
    "Problem",
    "QuotaExceeded",
    "RankLost",
    "RequestUnderWay",
    "RevisionMismatch",
    "ServiceError",
    "StateDamaged",
    "StorageError",
    "TrialCollapsed",
    "TrialDiverged",
]


class CareSweepError(Exception):
    """The root of every error that this package raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document.

    `pointer` is a JSON pointer (RFC 6901) into the document, `value` what stood there (shortened, as text),
    `detail` one sentence on what is wrong and what would work.
    """

    pointer: str
    detail: str
    value: str | None = None

    def __str__(self) -> str:
        received = "" if self.value is None else f" (received {self.value})"
        return f"{self.pointer or '/'}: {self.detail}{received}"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class InvalidDocument(CareSweepError, ValueError):  # noqa: N818  (the public names read as sentences)
    """A document was refused; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class DatasetError(CareSweepError, ValueError):
    """Images that are missing, unreadable or unfit; the message names the file and what would work."""


class CheckpointError(CareSweepError, ValueError):
    """A checkpoint that is missing, damaged or of a format this version cannot read."""


class StateDamaged(CheckpointError):  # noqa: N818
    """A training state that is missing, damaged or of an older format: the trial can only begin anew."""


class TrialDiverged(CareSweepError, ArithmeticError):  # noqa: N818
    """The loss is no longer finite; raised before the optimiser moves."""


class TrialCollapsed(CareSweepError, ArithmeticError):  # noqa: N818
    """The embeddings have gone to one point: the trial trains nothing.

    `epoch`, `metrics` and `seconds` are what that epoch would have reported.
    """

    def __init__(
        self, message: str, *, epoch: int = 0, metrics: Mapping[str, float] | None = None, seconds: float = 0
    ) -> None:
        self.epoch, self.metrics, self.seconds = epoch, dict(metrics or {}), seconds
        super().__init__(message)


class RankLost(CareSweepError):  # noqa: N818
    """Of the processes that train one trial together one has died, or does not answer."""


class NotFound(CareSweepError, LookupError):  # noqa: N818
    """There is no such thing, or it is not yours: the two look the same."""


class Conflict(CareSweepError):  # noqa: N818
    """The request is well-formed but does not fit the present state."""


class RequestUnderWay(Conflict):
    """The same request came before and has not been answered yet: asked again later, it has an answer."""


class QuotaExceeded(CareSweepError):  # noqa: N818
    """A token's sweeps have, or have taken, as much as it may; the message says of what."""


class RevisionMismatch(CareSweepError):  # noqa: N818
    """The request names a revision that is no longer the newest: somebody else has changed it since."""


class IdempotencyKeyReused(CareSweepError):  # noqa: N818
    """An Idempotency-Key names one request; this one came with another body before."""


class LeaseLost(CareSweepError):  # noqa: N818
    """The fencing token is no longer the sweep's: another driver owns it, and nothing was written."""


class ClusterExposed(CareSweepError):  # noqa: N818
    """The Ray cluster runs code for anybody who reaches it, or others can read its token: it is not used."""


class DatabaseError(CareSweepError):
    """The database is of a newer schema, damaged, or out of reach."""


class DatabaseDamaged(DatabaseError):  # noqa: N818
    """The database's file is not as it was written; only a copy helps."""


class DatabaseUnavailable(DatabaseError):  # noqa: N818
    """The database does not answer or takes no writes at present. The same may work in a while.

    Nothing of the transaction was written, unless it was the answer to its commit that was lost.
    """


class DatabaseBusy(DatabaseUnavailable):
    """Somebody else held what a write needs for longer than it may wait."""


class DatabaseFull(DatabaseUnavailable):
    """There is no room for a write."""


class StorageError(CareSweepError):
    """The storage of checkpoints and logs is out of reach, full, or refuses: nobody's trial is at fault."""


class ServiceError(CareSweepError):
    """The service refused a request or could not be reached.

    `status` is the HTTP status (None when no answer came), `problems` the places it pointed at.
    """

    def __init__(self, message: str, *, status: int | None = None, problems: Sequence[Problem] = ()) -> None:
        self.status = status
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *map(str, self.problems)]))
