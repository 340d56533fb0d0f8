"""What a statement looks at grows with its answer and not with the table, on both databases."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from situations import spec
from sqlalchemy import Engine, event, insert

from care_sweep.spec import TrialState
from care_sweep.store import Caller, Scope, Store, open_database
from care_sweep.store.database import writing
from care_sweep.store.schema import measurements, trials

LAST_SEEN = "300"  # trial of the page before


def _demands(store: Store, sweep_id: str) -> object:
    store.claim(store.sweep(sweep_id), "runner")
    return store.demands()


READS: Mapping[str, Callable[[Store, str], object]] = {
    "a sweep": lambda store, sweep: store.sweep(sweep),
    "wishes": lambda store, sweep: store.wishes(sweep, seen=0),
    "trials": lambda store, sweep: store.trials(sweep, page_size=10, page_token=LAST_SEEN),
    "trials that failed": lambda store, sweep: store.trials(sweep, states=[TrialState.FAILED], page_size=10),
    "trials by number": lambda store, sweep: store.trials(sweep, numbers={3, 300}),
    "outcomes": lambda store, sweep: store.outcomes(sweep),
    "a trial": lambda store, sweep: store.trial(sweep, 300),
    "its measurements": lambda store, sweep: store.measurements(sweep, 300),
    "its attempts": lambda store, sweep: store.attempts(sweep, 300),
    "events": lambda store, sweep: store.events(sweep, after=10, limit=10),
    "demands": _demands,
    "the last measurement": lambda store, sweep: store.last_measurement(sweep),
    "a key": lambda store, _: store.submitted("a key", "a hash"),
    "an owner's sweeps": lambda store, _: store.seen_by(Caller("local", Scope.READ)).sweeps(),
    "a token": lambda store, _: store.tokens.caller("cs_unknown"),
}


def _grow(store: Store, num_trials: int, num_epochs: int) -> str:
    """A sweep with the rows that these reads look for."""
    sweep = {"sweep_id": store.submit(spec())[0].id}
    trial = {"parameters": {}, "is_baseline": False, "attempt": 1, "last_epoch": num_epochs}
    trial |= {**sweep, "state": TrialState.COMPLETE, "value": 0.5}
    measured = {**sweep, "attempt": 1, "metrics": {"loss": 0.5}, "seconds": 1.0, "recorded_at": 0.0}
    numbers, epochs = range(num_trials), range(1, num_epochs + 1)
    with writing(store.engine) as connection:
        connection.execute(insert(trials), [{**trial, "number": number} for number in numbers])
        rows = [{**measured, "trial_number": n, "epoch": epoch} for n in numbers for epoch in epochs]
        connection.execute(insert(measurements), rows)
    return sweep["sweep_id"]


@contextmanager
def _statements(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """What is executed for the length of a `with`, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def see(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", see)
    yield seen
    event.remove(engine, "before_cursor_execute", see)


def _scans(engine: Engine, statements: Sequence[tuple[str, Any]]) -> list[str]:
    """The tables that SQLite would go through from end to end, or sort."""
    plans = []
    with engine.connect() as connection:
        for statement, parameters in statements:
            if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans += [row.detail for row in rows]
    return [plan for plan in plans if plan.startswith("SCAN") or "TEMP B-TREE" in plan]


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    engine = open_database(f"sqlite:///{tmp_path / 'store.db'}")
    yield Store(engine)
    engine.dispose()


@pytest.mark.parametrize("read", READS)
def test_no_read_goes_through_a_table(sqlite_store: Store, read: str) -> None:
    sweep_id = _grow(sqlite_store, 301, 1)
    with _statements(sqlite_store.engine) as seen:
        READS[read](sqlite_store, sweep_id)
    assert seen
    assert _scans(sqlite_store.engine, seen) == []


def test_no_submission_goes_through_a_table(sqlite_store: Store) -> None:
    """A day's keys are many, and each submission drops those that are older."""
    with _statements(sqlite_store.engine) as seen:
        sqlite_store.submit(spec(), idempotency_key="a key", body_sha256="a hash")
    assert sum("idempotency_keys" in statement for statement, _ in seen) == 3
    assert _scans(sqlite_store.engine, seen) == []


def _visited(plan: Mapping[str, Any]) -> float:
    """How many rows PostgreSQL has looked at, in all nodes of a plan."""
    rows = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return float(rows + sum(_visited(child) for child in plan.get("Plans", [])))


def test_a_page_of_trials_costs_a_page_whatever_postgresql_knows(postgresql: Callable[..., str]) -> None:
    """Its statistics are minutes old: of a sweep that has just begun to grow they know nothing."""
    engine = open_database(postgresql())
    store = Store(engine)
    with engine.begin() as connection:
        for table in ("trials", "measurements"):
            connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    _grow(store, 20, 100)
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    sweep_id = _grow(store, 600, 4)

    with _statements(engine) as seen:
        page = store.trials(sweep_id, page_size=10, page_token=LAST_SEEN)
    statement, parameters = seen[-1]
    with engine.connect() as connection:
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        plan = explained.scalar_one()[0]["Plan"]
    engine.dispose()

    assert [(trial.number, dict(trial.metrics)) for trial in page.items] == [
        (number, {"loss": 0.5}) for number in range(301, 311)
    ]
    assert _visited(plan) < 2 * 600
