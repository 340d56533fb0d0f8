"""Which sweeps were accepted, and what has become of them: submission, claims, control and every read."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import fields
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Engine, case, func, insert, select, text, tuple_, update
from sqlalchemy.exc import IntegrityError

from care_sweep.errors import DatabaseBusy, NotFound
from care_sweep.spec import SweepSpec, SweepState, TrialState
from care_sweep.store.acceptance import accept, accepted_as, under_way
from care_sweep.store.control import Control
from care_sweep.store.database import reading, writing
from care_sweep.store.demands import demands_of_all
from care_sweep.store.ending import OPEN_STATES, add_event, no_earlier
from care_sweep.store.grouping import GroupedWrites
from care_sweep.store.lease import Lease
from care_sweep.store.records import (
    AttemptRecord,
    Caller,
    ClusterRecord,
    DemandRecord,
    EventRecord,
    HoldRecord,
    MeasurementRecord,
    OutcomeRecord,
    Page,
    SweepRecord,
    TrialRecord,
    Wishes,
)
from care_sweep.store.rows import (
    WHOLE_TRIALS,
    attempt_record,
    counts_of_trials,
    enqueued_points,
    state_of,
    sweep_of,
    sweep_record,
    trial_record,
    visible_to,
)
from care_sweep.store.schema import (
    attempts,
    clusters,
    events,
    measurements,
    sweeps,
    trials,
)
from care_sweep.store.tokens import Tokens
from care_sweep.store.transitions import Move, state_after, states_before

__all__ = ["Store"]

_REPORT_KEPT_SECONDS = 3600
_CLUSTER_IS_KNOWN_SECONDS = 60  # or ahead of us: the clocks are of two machines
_ROWS_AT_A_TIME = 1000


class Store:
    """Sweeps in a database. Every method is one transaction and may be called from any thread.

    Only the driver that holds a sweep's `Lease` writes its trials; the service writes submissions and wishes
    (cancel), a runner claims and reports its cluster. What a method returned from is durable.

    A runner's store holds every sweep. The service asks as somebody (`seen_by`): others' sweeps are not there
    then, and each deed is noted in the audit log.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.clock = clock
        self.control = Control(engine, clock)
        self.tokens = Tokens(engine, clock)
        self._grouped = GroupedWrites(engine)
        self._caller: Caller | None = None

    def seen_by(self, caller: Caller) -> "Store":
        """The same store, as this caller may use it."""
        seen = copy(self)
        seen._caller = caller
        seen.control = Control(self.engine, self.clock, caller)
        return seen

    # --- written by the service ---

    def submit(
        self, spec: SweepSpec, *, idempotency_key: str | None = None, body_sha256: str = ""
    ) -> tuple[SweepRecord, bool]:
        """Accept a sweep; the key commits with it. Returns the sweep and whether it is new.

        The same key and body of one owner within 24 hours answer the sweep that was accepted the first time.
        While that is being accepted they wait, as long as the engine waits for a lock.

        Raises:
            IdempotencyKeyReused: the key was used with another body.
            QuotaExceeded: the caller's token may have no further sweep.
            RequestUnderWay: a transaction that may be of the same request has not ended in time.
        """
        for _ in range(2):  # the second time round the row that collided is there to be read
            try:
                return self._grouped.write(
                    lambda connection: accept(
                        connection, self._caller, spec, idempotency_key, body_sha256, self.clock()
                    )
                )
            except IntegrityError:
                if idempotency_key is None:
                    raise
            except DatabaseBusy as error:
                if idempotency_key is None:
                    raise
                raise under_way(idempotency_key) from error
        assert idempotency_key is not None, "without one nothing collides"
        raise under_way(idempotency_key)

    def submitted(self, idempotency_key: str, body_sha256: str) -> SweepRecord | None:
        """The sweep that this key and body were accepted as within 24 hours, if they were. Waits for nobody.

        Raises:
            IdempotencyKeyReused: the key was used with another body.
        """
        with reading(self.engine) as connection:
            return accepted_as(connection, self._caller, idempotency_key, body_sha256, self.clock())

    # --- written by a runner ---

    def holds(self) -> Sequence[HoldRecord]:
        """The sweeps that somebody holds, or should, oldest first; a paused one needs nobody."""
        live = sweeps.c.state.in_([SweepState.RUNNING, SweepState.PAUSED, SweepState.STOPPING])
        is_idle = (sweeps.c.state == SweepState.PAUSED) & sweeps.c.lease_owner.is_(None)
        return self._holds(live & ~is_idle, limit=None)

    def queued(self, limit: int) -> Sequence[HoldRecord]:
        """The sweeps that wait to be claimed for the first time or again: who has waited longest comes first.

        A sweep waits as many times faster as its priority says, so that none waits for ever. Where this
        clock is behind the one that told when they were queued, it is now when the last one was.
        """
        is_queued = sweeps.c.state == SweepState.QUEUED
        last = select(func.max(sweeps.c.queued_at)).where(is_queued).scalar_subquery()
        now = case((last > self.clock(), last), else_=self.clock())
        return self._holds(is_queued, limit, ((now - sweeps.c.queued_at) * sweeps.c.priority).desc())

    def hold(self, sweep_id: str) -> HoldRecord | None:
        """Who holds one sweep; None where there is none such."""
        return next(iter(self._holds(sweeps.c.id == sweep_id, limit=1)), None)

    def _holds(
        self, which: ColumnElement[bool], limit: int | None, *order: ColumnElement[Any]
    ) -> Sequence[HoldRecord]:
        columns = [sweeps.c[field.name] for field in fields(HoldRecord)]
        query = select(*columns).where(which).order_by(*order, sweeps.c.sequence).limit(limit)
        with reading(self.engine) as connection:
            rows = connection.execute(query).mappings().all()
        return [HoldRecord(**{**row, "state": SweepState(row["state"])}) for row in rows]

    def claim(self, sweep: HoldRecord | SweepRecord, owner: str) -> Lease | None:
        """Take a sweep as it was read, or None where somebody else has moved it since.

        The comparison and the new fencing token are one statement, so two runners cannot both win.
        """
        if sweep.state not in states_before(Move.CLAIM):
            return None
        with writing(self.engine) as connection:
            now = self.clock()
            claimed = connection.execute(
                update(sweeps)
                .where(
                    sweeps.c.id == sweep.id,
                    sweeps.c.state == sweep.state,
                    sweeps.c.fencing_token == sweep.fencing_token,
                    sweeps.c.lease_counter == sweep.lease_counter,
                )
                .values(
                    state=state_after(Move.CLAIM, sweep.state),
                    fencing_token=sweeps.c.fencing_token + 1,
                    lease_counter=sweeps.c.lease_counter + 1,
                    lease_owner=owner,
                    started_at=func.coalesce(sweeps.c.started_at, no_earlier(sweeps.c.created_at, now)),
                    is_ready=False,
                )
            )
            if claimed.rowcount != 1:
                return None
            if sweep.state is SweepState.QUEUED:
                add_event(connection, sweep.id, "sweep", {"state": SweepState.RUNNING}, now)
        return Lease(self.engine, sweep.id, sweep.fencing_token + 1, self.clock)

    def report_cluster(self, runner: str, report: Mapping[str, Any]) -> None:
        """Replace what this runner last saw of its cluster; reports of runners long gone are dropped."""
        now = self.clock()
        outdated = (clusters.c.runner == runner) | (clusters.c.reported_at < now - _REPORT_KEPT_SECONDS)
        with writing(self.engine) as connection:
            connection.execute(clusters.delete().where(outdated))
            connection.execute(insert(clusters).values(runner=runner, report=dict(report), reported_at=now))

    # --- reads ---

    def sweep(self, sweep_id: str) -> SweepRecord:
        """One sweep. Raises NotFound."""
        with reading(self.engine) as connection:
            return sweep_of(connection, sweep_id, self._caller)

    def state(self, sweep_id: str) -> SweepState:
        """Where a sweep stands, without the rest of it. Raises NotFound."""
        with reading(self.engine) as connection:
            return state_of(connection, sweep_id, self._caller)

    def wishes(self, sweep_id: str, *, seen: int) -> Wishes | None:
        """What users want of a sweep, or None where nothing has been said since the revision `seen`.

        Raises:
            NotFound: there is no such sweep.
        """
        columns = (sweeps.c.revision, sweeps.c.state, sweeps.c.reason, sweeps.c.spec)
        with reading(self.engine) as connection:
            row = connection.execute(select(*columns).where(sweeps.c.id == sweep_id)).one_or_none()
            if row is None:
                raise NotFound(f"there is no sweep {sweep_id!r}")
            if row.revision == seen:
                return None
            still_open = (trials.c.sweep_id == sweep_id) & trials.c.state.in_(OPEN_STATES)
            to_stop = select(trials.c.number).where(still_open, trials.c.is_stop_requested)
            return Wishes(
                revision=row.revision,
                state=SweepState(row.state),
                reason=row.reason,
                spec=SweepSpec.model_validate(row.spec),
                stop_requested=frozenset(connection.execute(to_stop).scalars()),
                enqueued=enqueued_points(connection, sweep_id),
            )

    def sweeps(
        self,
        *,
        states: Sequence[SweepState] = (),
        page_size: int = 50,
        page_token: str | None = None,
        oldest_first: bool = False,
    ) -> Page[SweepRecord]:
        """Sweeps in order of acceptance, newest first unless told otherwise.

        Raises:
            ValueError: the token is not one that this method gave.
        """
        order = sweeps.c.sequence.asc() if oldest_first else sweeps.c.sequence.desc()
        query = select(sweeps).where(visible_to(self._caller)).order_by(order).limit(page_size + 1)
        if states:
            query = query.where(sweeps.c.state.in_(list(states)))
        if page_token is not None:
            last = _number(page_token)
            query = query.where(sweeps.c.sequence > last if oldest_first else sweeps.c.sequence < last)
        with reading(self.engine) as connection:
            rows = connection.execute(query).mappings().all()
            counts = counts_of_trials(connection, [row["id"] for row in rows[:page_size]])
        more = str(rows[page_size - 1]["sequence"]) if len(rows) > page_size else None
        return Page([sweep_record(row, counts[row["id"]], None) for row in rows[:page_size]], more)

    def trials(
        self,
        sweep_id: str,
        *,
        states: Sequence[TrialState] = (),
        numbers: Collection[int] | None = None,
        page_size: int | None = None,
        page_token: str | None = None,
    ) -> Page[TrialRecord]:
        """Trials of a sweep by number, with the metrics of their last epoch; all of them without `page_size`.

        Args:
            states: only those in one of these, if any is given.
            numbers: only these.
            page_size: how many at most.
            page_token: where the page before ended.

        Raises:
            NotFound: there is no such sweep.
            ValueError: the token is not one that this method gave.
        """
        query = WHOLE_TRIALS.where(trials.c.sweep_id == sweep_id).order_by(trials.c.number)
        if states:
            query = query.where(trials.c.state.in_(list(states)))
        if numbers is not None:
            query = query.where(trials.c.number.in_(list(numbers)))
        if page_token is not None:
            query = query.where(trials.c.number > _number(page_token))
        if page_size is not None:
            query = query.limit(page_size + 1)
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            rows = connection.execute(query).mappings().all()
        more = page_size is not None and len(rows) > page_size
        shown = rows[:page_size] if more else rows
        return Page([trial_record(row) for row in shown], str(shown[-1]["number"]) if more else None)

    def trial(self, sweep_id: str, number: int) -> TrialRecord:
        """One trial. Raises NotFound."""
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            query = WHOLE_TRIALS.where(trials.c.sweep_id == sweep_id, trials.c.number == number)
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound(f"sweep {sweep_id} has no trial {number}")
        return trial_record(row)

    def outcomes(self, sweep_id: str) -> Sequence[OutcomeRecord]:
        """How each trial that is over ended, by number. Raises NotFound where there is no such sweep."""
        c = trials.c
        query = (
            select(c.number, c.parameters, c.is_baseline, c.state, c.value)
            .where(c.sweep_id == sweep_id, c.state.not_in(OPEN_STATES))
            .order_by(c.number)
        )
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            rows = connection.execute(query).all()
        return [
            OutcomeRecord(number, parameters, is_baseline, TrialState(state), value)
            for number, parameters, is_baseline, state, value in rows
        ]

    def attempts(self, sweep_id: str, number: int) -> Sequence[AttemptRecord]:
        """Every execution of a trial, first to last. Raises NotFound where there is no such sweep."""
        query = (
            select(*(attempts.c[field.name] for field in fields(AttemptRecord)))
            .where(attempts.c.sweep_id == sweep_id, attempts.c.trial_number == number)
            .order_by(attempts.c.attempt)
        )
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            return [attempt_record(row) for row in connection.execute(query).mappings()]

    def measurements(
        self,
        sweep_id: str,
        number: int | None = None,
        *,
        after: tuple[int, int] | None = None,
        limit: int | None = None,
    ) -> Sequence[MeasurementRecord]:
        """Measurements of one trial, or of all, by trial and epoch.

        Args:
            after: the trial and epoch of the last one that the caller has.
            limit: how many at most.

        Raises:
            NotFound: there is no such sweep.
        """
        columns = [column for column in measurements.c if column.name != "sweep_id"]
        query = (
            select(*columns)
            .where(measurements.c.sweep_id == sweep_id)
            .order_by(measurements.c.trial_number, measurements.c.epoch)
        )
        if number is not None:
            query = query.where(measurements.c.trial_number == number)
        if after is not None:
            query = query.where(tuple_(measurements.c.trial_number, measurements.c.epoch) > after)
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            return [MeasurementRecord(**row) for row in connection.execute(query.limit(limit)).mappings()]

    def trained_seconds(self, sweep_id: str) -> Mapping[int, float]:
        """What the stored epochs of each trial took to train, by number of those that have any."""
        columns = (measurements.c.trial_number, measurements.c.seconds)
        query = select(*columns).where(measurements.c.sweep_id == sweep_id).order_by(columns[0])
        with reading(self.engine) as connection:
            rows = connection.execution_options(yield_per=10_000).execute(query)
            by_trial = groupby(rows, key=itemgetter(0))
            return {number: math.fsum(seconds for _, seconds in group) for number, group in by_trial}

    def curves(self, sweep_id: str, metric: str) -> Mapping[int, Mapping[int, float]]:
        """What was measured of one metric, by trial and epoch; an epoch that did not report it is left out.

        It holds no more than that in memory: a long sweep has 100,000 measurements of many metrics.

        Raises:
            NotFound: there is no such sweep.
        """
        query = (
            select(measurements.c.trial_number, measurements.c.epoch, measurements.c.metrics)
            .where(measurements.c.sweep_id == sweep_id)
            .order_by(measurements.c.trial_number, measurements.c.epoch)
        )
        found: dict[int, dict[int, float]] = {}
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            rows = connection.execution_options(yield_per=_ROWS_AT_A_TIME).execute(query)
            for number, epoch, metrics in rows:
                if metric in metrics:
                    found.setdefault(number, {})[epoch] = metrics[metric]
        return found

    def events(self, sweep_id: str, *, after: int = 0, limit: int = 500) -> Sequence[EventRecord]:
        """Events of a sweep that came after the event `after`, oldest first.

        Raises:
            NotFound: there is no such sweep.
        """
        query = (
            select(events)
            .where(events.c.sweep_id == sweep_id, events.c.sequence > after)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        with reading(self.engine) as connection:
            state_of(connection, sweep_id, self._caller)
            return [EventRecord(**row) for row in connection.execute(query).mappings()]

    def demands(self) -> Sequence[DemandRecord]:
        """What each sweep that somebody drives wants of the cluster, in order of acceptance."""
        with reading(self.engine) as connection:
            return demands_of_all(connection)

    def cluster(self) -> ClusterRecord | None:
        """What a runner saw, by the newest report; None where there is none."""
        query = select(clusters).order_by(clusters.c.reported_at.desc()).limit(1)
        with reading(self.engine) as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        is_known = abs(self.clock() - row["reported_at"]) <= _CLUSTER_IS_KNOWN_SECONDS
        return ClusterRecord(**row, is_known=is_known)

    def last_measurement(self, sweep_id: str) -> int:
        """The event of the sweep's newest measurement, 0 before the first: it grows as the sweep gets on."""
        query = select(func.coalesce(func.max(events.c.sequence), 0)).where(
            events.c.sweep_id == sweep_id, events.c.kind == "measurement"
        )
        with reading(self.engine) as connection:
            return int(connection.execute(query).scalar_one())

    def ping(self) -> None:
        """Return if the database answers and can be written. Raises DatabaseUnavailable otherwise."""
        with writing(self.engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))


def _number(page_token: str) -> int:
    if not page_token.isdecimal() or len(page_token) > 18:
        raise ValueError(f"unknown page token {page_token!r}: use one that the page before gave")
    return int(page_token)
