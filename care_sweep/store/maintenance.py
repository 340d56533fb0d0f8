"""Is a database whole, and how does it move to another one? What an operator does while nothing runs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, select, text

from care_sweep.errors import Conflict, DatabaseError
from care_sweep.spec import SweepState, TrialState
from care_sweep.store.database import reading, writing
from care_sweep.store.ending import OPEN_STATES
from care_sweep.store.schema import attempts, measurements, metadata, sweeps, trials

__all__ = ["TableHash", "check", "copy", "table_hashes"]

_BATCH = 1000


@dataclass(frozen=True)
class TableHash:
    """How many rows a table has, and the SHA-256 over all of them in the order of their primary key."""

    num_rows: int
    sha256: str


def table_hashes(engine: Engine) -> Mapping[str, TableHash]:
    """The hash of every table; databases with equal rows have equal hashes, whatever holds them."""
    with reading(engine) as connection:
        return {table.name: _hash(connection, table) for table in metadata.sorted_tables}


def copy(source: Engine, target: Engine) -> Mapping[str, TableHash]:
    """Copy every row into a database that has none, in one transaction; the hashes, which are equal.

    Raises:
        Conflict: a runner holds a sweep of the source, or the target holds sweeps.
        DatabaseError: what arrived is not what was sent; nothing was kept.
    """
    with reading(source) as old, writing(target) as new:
        _refuse_unfit(old, new)
        for table in reversed(metadata.sorted_tables):
            new.execute(table.delete())
        for table in metadata.sorted_tables:
            for batch in _batches(old, table):
                new.execute(insert(table), batch)
            _go_on_counting(new, table)
        hashes = {table.name: _hash(old, table) for table in metadata.sorted_tables}
        for table in metadata.sorted_tables:
            if _hash(new, table) != hashes[table.name]:
                raise DatabaseError(f"table {table.name} did not arrive as it was sent; nothing was kept")
        return hashes


def check(engine: Engine) -> list[str]:
    """What is wrong with the rows, one sentence each; an empty list where all is well."""
    with reading(engine) as connection:
        return [*_database_problems(connection), *_row_problems(connection)]


def _refuse_unfit(old: Connection, new: Connection) -> None:
    held = sweeps.c.lease_owner.is_not(None) & sweeps.c.finished_at.is_(None)
    owners = sorted(set(old.execute(select(sweeps.c.lease_owner).where(held)).scalars()))
    if owners:
        raise Conflict(f"{', '.join(owners)} holds sweeps of the source: end its runner first, then copy")
    if new.execute(select(func.count()).select_from(sweeps)).scalar_one():
        raise Conflict("the target holds sweeps: copy into an empty database")


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    rows = connection.execution_options(yield_per=_BATCH).execute(select(table).order_by(*table.primary_key))
    for part in rows.mappings().partitions():
        yield [dict(row) for row in part]


def _go_on_counting(connection: Connection, table: Table) -> None:
    """PostgreSQL's own counter does not see rows that come with their number."""
    column = table.autoincrement_column
    if connection.dialect.name != "postgresql" or column is None:
        return
    highest = func.coalesce(func.max(column), 0) + 1
    sequence = func.pg_get_serial_sequence(table.name, column.name)
    connection.execute(select(func.setval(sequence, select(highest).scalar_subquery(), False)))


def _hash(connection: Connection, table: Table) -> TableHash:
    digest, num_rows = hashlib.sha256(), 0
    for batch in _batches(connection, table):
        for row in batch:
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        num_rows += len(batch)
    return TableHash(num_rows, digest.hexdigest())


def _database_problems(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for (found,) in connection.execute(text("PRAGMA integrity_check")):
        if found != "ok":
            yield f"SQLite: {found}"
    for row in connection.execute(text("PRAGMA foreign_key_check")):
        yield f"a row of {row[0]} belongs to a row of {row[2]} that is not there"


def _row_problems(connection: Connection) -> Iterator[str]:
    ended = [state for state in SweepState if state.is_terminal]
    of_its_sweep = trials.c.sweep_id == sweeps.c.id
    still_open = trials.c.state.in_(OPEN_STATES)
    for row in connection.execute(
        select(trials.c.sweep_id, trials.c.number).where(of_its_sweep, sweeps.c.state.in_(ended), still_open)
    ):
        yield f"trial {row.number} of sweep {row.sweep_id} is open, though its sweep has ended"
    of_its_trial = (measurements.c.sweep_id == trials.c.sweep_id) & (
        measurements.c.trial_number == trials.c.number
    )
    counted = func.count(measurements.c.epoch)
    for row in connection.execute(
        select(trials.c.sweep_id, trials.c.number, trials.c.last_epoch, counted.label("count"))
        .outerjoin(measurements, of_its_trial)
        .group_by(trials.c.sweep_id, trials.c.number, trials.c.last_epoch)
        .having(counted != trials.c.last_epoch)
    ):
        yield (
            f"trial {row.number} of sweep {row.sweep_id} stands at epoch {row.last_epoch} "
            f"with {row.count} measurements"
        )
    running = (attempts.c.sweep_id == trials.c.sweep_id) & (attempts.c.trial_number == trials.c.number)
    for row in connection.execute(
        select(trials.c.sweep_id, trials.c.number).where(
            running, attempts.c.finished_at.is_(None), trials.c.state != TrialState.RUNNING
        )
    ):
        yield f"an attempt at trial {row.number} of sweep {row.sweep_id} has no end, though it does not run"
