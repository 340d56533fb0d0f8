"""Who may write a sweep's trials: the holder of its newest fencing token, and what it may write."""

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Concatenate, ParamSpec

from sqlalchemy import ColumnElement, Connection, Engine, func, insert, select, update

from care_sweep.errors import DatabaseBusy, LeaseLost, RevisionMismatch
from care_sweep.spec import Measurement, Place, Scalar, SweepState, TrialState
from care_sweep.store.database import writing
from care_sweep.store.ending import add_event, close_attempt, end_sweep, end_trial, let_go, open_trial
from care_sweep.store.schema import attempts, enqueued, measurements, sweeps, tokens, trials
from care_sweep.store.transitions import HELD_STATES, Move, state_after

__all__ = ["Lease"]

_P = ParamSpec("_P")
_Write = Callable[Concatenate["Lease", _P], None]

_OTHER_WRITE_SECONDS = 1.0


class _IsWrittenError(Exception):
    """The commit whose answer was lost had been made."""


def _once(write: _Write[_P]) -> _Write[_P]:
    """Have the lease's `persist` make a write, which is made once however often it is tried."""

    @functools.wraps(write)
    def persisted(lease: "Lease", /, *arguments: _P.args, **options: _P.kwargs) -> None:
        with lease._at_work, suppress(_IsWrittenError):
            lease._unanswered = None
            lease._persist(lambda: write(lease, *arguments, **options))

    return persisted


class Lease:
    """The right to write one sweep, held by its token. Used from any thread, which wait for each other.

    The first statement of every transaction moves the sweep's counter where the token still fits: the
    database itself refuses a stale holder, and every write is a sign of life. Each method raises `LeaseLost`,
    having written nothing, once another driver has claimed the sweep, it was let go of, or it has ended.

    Args:
        persist: makes a write by calling it, again where it raises DatabaseUnavailable and that shall be
            outlasted. A commit whose answer was lost shows in the counter: nothing is written twice.
    """

    def __init__(
        self,
        engine: Engine,
        sweep_id: str,
        token: int,
        clock: Callable[[], float],
        *,
        persist: Callable[[Callable[[], None]], None] = lambda write: write(),
    ) -> None:
        self.sweep_id = sweep_id
        self.token = token
        self._engine = engine
        self._clock = clock
        self._persist = persist
        self._at_work = threading.Lock()
        self._unanswered: int | None = None  # where the counter stands if the last commit was made

    def renew(self, active_seconds: float = 0.0) -> None:
        """Give a sign of life, and count the seconds that the sweep was driven since the last one.

        Tried once, for it comes again anyway.

        Raises:
            DatabaseBusy: another write of this lease is being tried.
        """
        if not self._at_work.acquire(timeout=_OTHER_WRITE_SECONDS):
            raise DatabaseBusy(f"another write of sweep {self.sweep_id} has not ended")
        try:
            self._unanswered = None
            with self._fenced(active_seconds=active_seconds):
                pass
        finally:
            self._at_work.release()

    @_once
    def explain(self, message: str | None) -> None:
        """Say why the sweep does not get on, or with None that it does."""
        with self._fenced() as connection:
            sweep = sweeps.c.id == self.sweep_id
            said = connection.execute(select(sweeps.c.message, sweeps.c.state).where(sweep)).one()
            if said.message != message:
                connection.execute(update(sweeps).where(sweep).values(message=message))
                change = {"state": said.state, "message": message}
                add_event(connection, self.sweep_id, "sweep", change, self._clock())

    @_once
    def ready(self, is_ready: bool) -> None:
        """Say whether trials could begin now: while not, the sweep wants no more than it has."""
        with self._fenced() as connection:
            connection.execute(update(sweeps).where(sweeps.c.id == self.sweep_id).values(is_ready=is_ready))

    @_once
    def note_gpus(self, gpus_per_trial: float, message: str | None) -> None:
        """Keep what a trial has of a GPU, where the sweep left it to us, for others; and say why."""
        with self._fenced() as connection:
            sweep = sweeps.c.id == self.sweep_id
            connection.execute(update(sweeps).where(sweep).values(gpus_per_trial=gpus_per_trial))
            if message is None:
                return
            state = connection.execute(select(sweeps.c.state).where(sweep)).scalar_one()
            told = {"state": state, "gpus_per_trial": gpus_per_trial, "message": message}
            add_event(connection, self.sweep_id, "sweep", told, self._clock())

    @_once
    def start_attempt(
        self,
        number: int,
        attempt: int,
        parameters: Mapping[str, Scalar],
        *,
        is_baseline: bool,
        enqueued_as: int | None = None,
        search_seconds: float = 0.0,
    ) -> None:
        """A trial begins, for the first time (attempt 1, which creates it) or again (one attempt later).

        An attempt that nobody ended, for its driver died, ends here. A first attempt at an enqueued point
        takes it from the queue.
        """
        now = self._clock()
        with self._fenced(search_seconds=search_seconds) as connection:
            change = {"state": TrialState.RUNNING, "attempt": attempt}
            if attempt == 1:
                row = {"parameters": dict(parameters), "is_baseline": is_baseline, "started_at": now}
                connection.execute(
                    insert(trials).values(sweep_id=self.sweep_id, number=number, **row, **change)
                )
                if enqueued_as is not None:
                    taken = (enqueued.c.sequence == enqueued_as) & enqueued.c.trial_number.is_(None)
                    changed = connection.execute(update(enqueued).where(taken).values(trial_number=number))
                    assert changed.rowcount == 1, f"point {enqueued_as} of the queue is taken"
            else:
                close_attempt(connection, self.sweep_id, number, "driver lost", now)
                changed = connection.execute(
                    update(trials)
                    .where(self._trial(number), trials.c.attempt == attempt - 1)
                    .values(change | {"reason": None, "message": None})
                )
                assert changed.rowcount == 1, f"trial {number} cannot take attempt {attempt}"
            connection.execute(
                insert(attempts).values(
                    sweep_id=self.sweep_id, trial_number=number, attempt=attempt, started_at=now
                )
            )
            add_event(connection, self.sweep_id, "trial", {"number": number, **change}, now)

    @_once
    def place_attempt(self, number: int, attempt: int, place: Place) -> None:
        """Keep where in the cluster an attempt runs."""
        with self._fenced() as connection:
            this = (attempts.c.sweep_id == self.sweep_id) & (attempts.c.trial_number == number)
            where = update(attempts).where(this, attempts.c.attempt == attempt)
            connection.execute(where.values(place=place.model_dump()))

    @_once
    def record(
        self,
        number: int,
        attempt: int,
        measurement: Measurement,
        *,
        state: TrialState | None = None,
        value: float | None = None,
        reason: str | None = None,
        gpu_seconds: float = 0.0,
        search_seconds: float = 0.0,
        share_seconds: float = 0.0,
        least_share_seconds: float = 0.0,
    ) -> None:
        """Keep what one epoch reported and, with a `state`, end the trial there: both or neither.

        Epochs of a trial are recorded once and in order, and so is what they cost: in GPUs, which counts for
        the token that submitted the sweep too, and of the cluster, which the sweep is taken to have had
        `least_share_seconds` of before.
        """
        now = self._clock()
        spent = {"gpu_seconds": gpu_seconds, "share_seconds": share_seconds}
        spent |= {"search_seconds": search_seconds, "num_images": measurement.num_images}
        with self._fenced(**spent) as connection:
            changed = connection.execute(
                update(trials)
                .where(self._trial(number), trials.c.attempt == attempt)
                .where(trials.c.last_epoch == measurement.epoch - 1)
                .values(last_epoch=measurement.epoch)
            )
            assert changed.rowcount == 1, f"trial {number} cannot take epoch {measurement.epoch}"
            connection.execute(
                insert(measurements).values(
                    sweep_id=self.sweep_id,
                    trial_number=number,
                    epoch=measurement.epoch,
                    attempt=attempt,
                    metrics=measurement.metrics,
                    seconds=measurement.seconds,
                    recorded_at=now,
                )
            )
            data = {"number": number, "epoch": measurement.epoch, "metrics": measurement.metrics}
            add_event(connection, self.sweep_id, "measurement", data, now)
            sweep = sweeps.c.id == self.sweep_id
            if least_share_seconds:
                least = least_share_seconds + share_seconds
                came_late = sweeps.c.share_seconds < least
                connection.execute(update(sweeps).where(sweep, came_late).values(share_seconds=least))
            if gpu_seconds:
                of_sweep = select(sweeps.c.token_id).where(sweep).scalar_subquery()
                used = tokens.c.gpu_seconds + gpu_seconds
                connection.execute(update(tokens).where(tokens.c.id == of_sweep).values(gpu_seconds=used))
            if state is not None:
                checkpoint = measurement.checkpoint
                end_trial(
                    connection, self.sweep_id, number, state, reason, now, value=value, checkpoint=checkpoint
                )

    @_once
    def finish_trial(
        self, number: int, state: TrialState, *, reason: str | None = None, message: str | None = None
    ) -> None:
        """End a trial for good without a measurement."""
        with self._fenced() as connection:
            end_trial(connection, self.sweep_id, number, state, reason, self._clock(), message=message)

    @_once
    def forget_checkpoints(self, numbers: Collection[int]) -> None:
        """COMPLETE trials no longer have a checkpoint. Only then may what was stored of it be deleted."""
        with self._fenced() as connection:
            connection.execute(
                update(trials)
                .where(trials.c.sweep_id == self.sweep_id, trials.c.number.in_(list(numbers)))
                .where(trials.c.state == TrialState.COMPLETE)
                .values(checkpoint=None)
            )

    @_once
    def interrupt_trial(self, number: int, *, reason: str, message: str | None = None) -> None:
        """End an attempt but not its trial, which waits to be attempted again."""
        now = self._clock()
        with self._fenced() as connection:
            close_attempt(connection, self.sweep_id, number, reason, now, message)
            change = {"state": TrialState.WAITING, "reason": reason, "message": message}
            running = self._trial(number) & (trials.c.state == TrialState.RUNNING)
            changed = connection.execute(update(trials).where(running).values(change))
            assert changed.rowcount == 1, f"trial {number} does not run"
            add_event(connection, self.sweep_id, "trial", {"number": number, **change}, now)

    @_once
    def finish_sweep(
        self,
        state: SweepState,
        *,
        reason: str | None = None,
        message: str | None = None,
        seen: int | None = None,
    ) -> None:
        """End the sweep and cancel its open trials; the lease ends with it.

        Args:
            seen: the revision whose wishes were heard; None to end it whatever users want.

        Raises:
            RevisionMismatch: a user has wished something since; nothing has ended.
        """
        with self._fenced() as connection:
            if seen is not None:
                revision = select(sweeps.c.revision).where(sweeps.c.id == self.sweep_id)
                if connection.execute(revision).scalar_one() != seen:
                    raise RevisionMismatch("a user has wished something of the sweep that was not heard yet")
            end_sweep(connection, self.sweep_id, state, reason, message, self._clock())

    @_once
    def release(self, *, reason: str = "driver ended") -> None:
        """Let go of the sweep, so that it can be claimed at once; its running trials wait from now on."""
        with self._fenced() as connection:
            let_go(connection, self.sweep_id, reason, self._clock())

    @_once
    def give_way(self) -> None:
        """Let go of the sweep, for another that waits for a driver; it waits in the queue itself.

        It does so behind those that wait now, whatever the clocks of machines say.
        """
        now = self._clock()
        with self._fenced() as connection:
            sweep = sweeps.c.id == self.sweep_id
            state = SweepState(connection.execute(select(sweeps.c.state).where(sweep)).scalar_one())
            let_go(connection, self.sweep_id, "gave way", now)
            after = state_after(Move.GIVE_WAY, state)
            if after is not state:
                is_queued = sweeps.c.state == SweepState.QUEUED
                last = connection.execute(select(func.max(sweeps.c.queued_at)).where(is_queued)).scalar()
                queued_at = now if last is None else max(now, last + 1)
                change = {"state": after, "message": "waiting for its next turn: other sweeps are driven"}
                connection.execute(update(sweeps).where(sweep).values(queued_at=queued_at, **change))
                add_event(connection, self.sweep_id, "sweep", change, now)

    def _trial(self, number: int) -> ColumnElement[bool]:
        return open_trial(self.sweep_id, number)

    @contextmanager
    def _fenced(self, **spent: float) -> Iterator[Connection]:
        """A transaction of the holder's; `spent` is added to columns of the sweep."""
        with writing(self._engine) as connection:
            held = (sweeps.c.id == self.sweep_id) & (sweeps.c.fencing_token == self.token)
            more = {name: sweeps.c[name] + amount for name, amount in spent.items() if amount}
            counter = connection.execute(
                update(sweeps)
                .where(held, sweeps.c.state.in_(HELD_STATES), sweeps.c.lease_owner.is_not(None))
                .values(lease_counter=sweeps.c.lease_counter + 1, **more)
                .returning(sweeps.c.lease_counter)
            ).scalar()
            self._refuse_second(connection, held, counter)
            yield connection
            self._unanswered = counter  # only the commit can fail now
        self._unanswered = None

    def _refuse_second(self, connection: Connection, held: Any, counter: int | None) -> None:
        """Raise where the fence refused (`counter` is None), and where the commit without an answer was made.

        One that was still under way has ended by now, for the fence had to wait for it.
        """
        before = self._unanswered
        if counter is not None:
            if before is not None and counter > before:
                raise _IsWrittenError
            return
        stands_at = connection.execute(select(sweeps.c.lease_counter).where(held)).scalar()
        if before is not None and stands_at == before:  # it ended the sweep
            raise _IsWrittenError
        raise LeaseLost(f"sweep {self.sweep_id} is no longer held with token {self.token}")
