"""Which trials of a sweep are open, which of them run, and which wait for their next attempt?"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from care_sweep.spec import Scalar, Spot, TrialConfig

__all__ = ["MAX_LOSSES", "Assignment", "OpenTrial", "OpenTrials"]

MAX_LOSSES = 4
"""So many attempts of a trial may be lost with their worker or for want of memory before it has failed; its
own failures are final."""

_BACKOFF_SECONDS = 2.0  # before the second attempt; twice as long before each further one


@dataclass(frozen=True)
class Assignment:
    """One attempt at one trial, as a worker is told of it. It goes on after `last_epoch`.

    `prefix` is the trial's in the storage, `gpus` what it holds of a GPU.
    """

    number: int
    attempt: int
    config: TrialConfig
    prefix: str
    last_epoch: int
    gpus: float


@dataclass
class OpenTrial:
    """One that has begun and not ended. It goes on after `last_epoch`, the last that is stored.

    Attributes:
        attempt: the last that was begun.
        num_losses, wants_memory: attempts that were lost, and whether one was for want of memory.
        last_value: the last of the sweep's metric.
        not_before: when its next attempt may begin, on the conductor's clock.
        spot: where its attempt runs, once that is known.
    """

    parameters: Mapping[str, Scalar]
    is_baseline: bool
    attempt: int
    last_epoch: int = 0
    num_losses: int = 0
    wants_memory: bool = False
    last_value: float | None = None
    not_before: float = 0.0
    spot: Spot | None = None

    def lose(self, now: float, *, wanted_memory: bool) -> bool:
        """Count the loss of an attempt. Whether there is to be another, after a while."""
        self.num_losses += 1
        self.wants_memory |= wanted_memory
        self.not_before = now + _BACKOFF_SECONDS * 2 ** (self.num_losses - 1)
        return self.num_losses < MAX_LOSSES


class OpenTrials:
    """Open trials by number. Those that wait go on in the order in which they were interrupted."""

    def __init__(self) -> None:
        self._trials: dict[int, OpenTrial] = {}
        self._waiting: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[tuple[int, OpenTrial]]:
        return iter(self._trials.items())

    def __getitem__(self, number: int) -> OpenTrial:
        return self._trials[number]

    @property
    def num_running(self) -> int:
        return len(self._trials) - len(self._waiting)

    @property
    def waiting(self) -> Sequence[int]:
        """Those that wait for their next attempt."""
        return list(self._waiting)

    def runs(self, number: int, attempt: int) -> bool:
        """Whether nothing has been heard yet of how this attempt ended."""
        trial = self._trials.get(number)
        return trial is not None and trial.attempt == attempt and number not in self._waiting

    def open(self, number: int, trial: OpenTrial) -> None:
        """It runs from now on."""
        self._trials[number] = trial

    def wait(self, number: int) -> None:
        """Its attempt has ended, and the trial has not."""
        self._waiting.append(number)

    def go_on(self, now: float) -> int | None:
        """The first that waits and whose time has come runs from now on, in its next attempt."""
        number = next((one for one in self._waiting if self._trials[one].not_before <= now), None)
        if number is not None:
            self._waiting.remove(number)
            self._trials[number].attempt += 1
        return number

    def close(self, number: int) -> OpenTrial:
        """It has ended, whether it ran or waited."""
        if number in self._waiting:
            self._waiting.remove(number)
        return self._trials.pop(number)

    def places(self) -> Mapping[Spot, int]:
        """How many run where, as far as that is known."""
        running = (trial.spot for number, trial in self if number not in self._waiting)
        return Counter(spot for spot in running if spot is not None)
