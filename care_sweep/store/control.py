"""What may a user do to a sweep that is there? Every wish is one transaction that the driver hears of.

A wish locks the sweep's row first, as every write of its driver does, so the two have an order on every
database; then it moves the sweep's revision. The driver looks at the revision and obeys; a sweep that nobody
drives changes at once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from care_sweep.errors import Conflict, NotFound, RevisionMismatch
from care_sweep.spec import Scalar, SweepSpec, SweepState, TrialState
from care_sweep.store.acceptance import accepted_as, keep_key, under_way
from care_sweep.store.audit import note
from care_sweep.store.database import reading, writing
from care_sweep.store.demands import require_quota
from care_sweep.store.ending import add_event, end_sweep, end_trial, let_go
from care_sweep.store.records import Caller, SweepRecord
from care_sweep.store.rows import sweep_of
from care_sweep.store.schema import enqueued, sweeps, trials
from care_sweep.store.transitions import Move, state_after

__all__ = ["Control"]


class Control:
    """The wishes of users. Each method answers the sweep as it is then.

    All raise `NotFound` where the caller sees no such sweep, and `Conflict` where its state does not allow
    the move. What a caller did is noted in the audit log.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float], caller: Caller | None = None) -> None:
        self._engine = engine
        self._clock = clock
        self._caller = caller

    def pause(self, sweep_id: str) -> SweepRecord:
        """Start nothing more; running trials stop at the end of their epoch and give back what they hold."""
        with self._moving(sweep_id, Move.PAUSE) as (connection, before):
            waited = {"message": None} if before.state is SweepState.QUEUED else {}
            self._change(connection, sweep_id, {"state": SweepState.PAUSED, **waited})
            return sweep_of(connection, sweep_id)

    def resume(self, sweep_id: str) -> SweepRecord:
        """Let a runner take a paused sweep up again; its trials go on from their last epochs."""
        with self._moving(sweep_id, Move.RESUME) as (connection, _):
            let_go(connection, sweep_id, "paused", self._clock())  # where its driver still winds down
            self._change(connection, sweep_id, {"state": SweepState.QUEUED, "queued_at": self._clock()})
            return sweep_of(connection, sweep_id)

    def stop(self, sweep_id: str) -> SweepRecord:
        """Start no new trial and let those that have begun end; the sweep succeeds with what it has."""
        return self._end(sweep_id, Move.STOP, "stopped")

    def cancel(self, sweep_id: str) -> SweepRecord:
        """End the sweep now; what has not been measured by then never will be."""
        return self._end(sweep_id, Move.CANCEL, "cancelled")

    def extend(
        self, sweep_id: str, revise: Callable[[SweepSpec], SweepSpec], *, revision: int | None = None
    ) -> SweepRecord:
        """Replace what the sweep may spend and run; one that has ended goes on, with all it has learnt.

        Args:
            revise: makes the new document of the present one; what it raises passes through.
            revision: the one the user has seen; None for whichever.

        Raises:
            RevisionMismatch: the sweep has another revision by now.
            QuotaExceeded: it has ended, and the caller's token may have no further sweep.
        """
        with self._moving(sweep_id, Move.EXTEND) as (connection, before):
            if revision is not None and before.revision != revision:
                raise RevisionMismatch(
                    f"the sweep has revision {before.revision}, not {revision}: read it again and decide anew"
                )
            spec = revise(before.spec)
            num_begun, num_waiting = sum(before.trial_counts.values()), _num_waiting(before)
            if spec.num_trials < num_begun + num_waiting:
                enqueued_too = f" and the {num_waiting} enqueued" if num_waiting else ""
                raise Conflict(
                    f"num_trials {spec.num_trials} is less than the {num_begun} trials that have begun"
                    f"{enqueued_too}; use {num_begun + num_waiting} or more, or stop the sweep"
                )
            if before.state.is_terminal and spec.num_trials == num_begun:
                raise Conflict(
                    f"all {num_begun} trials of the sweep have begun and it has ended as {before.state}: "
                    f"give it a num_trials of more than {num_begun}"
                )
            after = state_after(Move.EXTEND, before.state)
            change = {"spec": spec.model_dump(mode="json"), "priority": spec.priority}
            self._revise(connection, sweep_id, change)
            if after is not before.state:
                require_quota(connection, self._caller)
                now = self._clock()
                reopened = {
                    "queued_at": now,
                    "reason": None,
                    "message": None,
                    "finished_at": None,
                    "lease_owner": None,
                }
                change = {"state": after, **reopened}
                if self._caller is not None:  # whose quota it counts for from now on
                    change["token_id"] = self._caller.token_id
                connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(change))
                add_event(connection, sweep_id, "sweep", {"state": after}, now)
            return sweep_of(connection, sweep_id)

    def enqueue(
        self,
        sweep_id: str,
        parameters: Mapping[str, Scalar],
        *,
        idempotency_key: str | None = None,
        request_sha256: str = "",
    ) -> SweepRecord:
        """Have a configuration tried before what the search suggests; it takes one of `num_trials`.

        The same key and request of one owner within 24 hours enqueue it once, whatever has become of it.

        Args:
            request_sha256: of what was asked, the sweep's id too.

        Raises:
            IdempotencyKeyReused: the key was used with another request.
            RequestUnderWay: the same request was accepted at the same time.
        """
        if idempotency_key is None:
            return self._enqueue(sweep_id, parameters)
        with reading(self._engine) as connection:
            known = accepted_as(connection, self._caller, idempotency_key, request_sha256, self._clock())
        if known is not None:
            return known
        try:
            return self._enqueue(sweep_id, parameters, (idempotency_key, request_sha256))
        except IntegrityError as error:
            raise under_way(idempotency_key) from error

    def _enqueue(
        self, sweep_id: str, parameters: Mapping[str, Scalar], kept: tuple[str, str] | None = None
    ) -> SweepRecord:
        with self._moving(sweep_id, Move.ENQUEUE) as (connection, before):
            if kept is not None:
                keep_key(connection, self._caller, *kept, sweep_id, self._clock())
            num_waiting = _num_waiting(before)
            num_taken = sum(before.trial_counts.values()) + num_waiting
            num_taken = max(num_taken, len(before.spec.space.baselines) + num_waiting)
            if num_taken >= before.spec.num_trials:
                raise Conflict(
                    f"all {before.spec.num_trials} trials of the sweep are taken: extend num_trials first"
                )
            row = {"sweep_id": sweep_id, "parameters": dict(parameters), "created_at": self._clock()}
            connection.execute(insert(enqueued).values(row))
            self._revise(connection, sweep_id)
            return sweep_of(connection, sweep_id)

    def stop_trial(self, sweep_id: str, number: int) -> SweepRecord:
        """Have one open trial cancelled, at the end of its epoch if it runs."""
        with self._moving(sweep_id, Move.STOP_TRIAL, f"/trials/{number}") as (connection, before):
            this = (trials.c.sweep_id == sweep_id) & (trials.c.number == number)
            state = connection.execute(select(trials.c.state).where(this)).scalar()
            if state is None:
                raise NotFound(f"sweep {sweep_id} has no trial {number}")
            if TrialState(state).is_terminal:
                raise Conflict(f"trial {number} has already ended as {state}")
            if before.lease_owner is None:
                end_trial(connection, sweep_id, number, TrialState.CANCELLED, "stopped", self._clock())
            else:
                connection.execute(update(trials).where(this).values(is_stop_requested=True))
            self._revise(connection, sweep_id)
            return sweep_of(connection, sweep_id)

    def delete(self, sweep_id: str) -> None:
        """Delete all rows of an ended sweep. Its artifacts are the caller's to delete, after that."""
        with self._moving(sweep_id, Move.DELETE) as (connection, _):
            connection.execute(delete(sweeps).where(sweeps.c.id == sweep_id))

    def _end(self, sweep_id: str, move: Move, reason: str) -> SweepRecord:
        with self._moving(sweep_id, move) as (connection, before):
            after = state_after(move, before.state)
            if after.is_terminal:
                self._revise(connection, sweep_id)
                end_sweep(connection, sweep_id, after, reason, None, self._clock())
            elif (after, reason) != (before.state, before.reason):
                self._change(connection, sweep_id, {"state": after, "reason": reason})
            return sweep_of(connection, sweep_id)

    def _change(self, connection: Connection, sweep_id: str, change: Mapping[str, Any]) -> None:
        self._revise(connection, sweep_id, change)
        told = {key: change[key] for key in ("state", "reason", "message") if key in change}
        add_event(connection, sweep_id, "sweep", told, self._clock())

    def _revise(self, connection: Connection, sweep_id: str, change: Mapping[str, Any] | None = None) -> None:
        values = {"revision": sweeps.c.revision + 1, **(change or {})}
        connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(values))

    @contextmanager
    def _moving(self, sweep_id: str, move: Move, part: str = "") -> Iterator[tuple[Connection, SweepRecord]]:
        """The sweep as it stands, locked; what is done to it, or to a part of it, is noted."""
        this = sweeps.c.id == sweep_id
        with writing(self._engine) as connection:
            connection.execute(select(sweeps.c.id).where(this).with_for_update())  # SQLite has locked it all
            before = sweep_of(connection, sweep_id, self._caller)
            state_after(move, before.state)
            yield connection, before
            outcome = connection.execute(select(sweeps.c.state).where(this)).scalar() or "DELETED"
            note(connection, self._caller, move, sweep_id + part, outcome, self._clock())


def _num_waiting(sweep: SweepRecord) -> int:
    """How many enqueued points no trial was made of yet."""
    assert sweep.enqueued is not None, "it was read alone"
    return len(sweep.enqueued)
