"""Does each of some writes in child processes of which the n-th dies after n statements, until one survives.

Prints, for each, how many died, how many of them left a trace, and whether the survivor's write is there.
"""

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from unittest.mock import patch

import alembic.command  # noqa: F401  (before the forks, which would each pay for it)
from situations import LEASE_WRITES, in_the_middle, spec, struck_after
from sqlalchemy import Engine

from care_sweep.store import Store, database, open_database

DIED = 77


def _die() -> None:
    os._exit(DIED)


def _survives(write: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            write()
        except BaseException as error:  # noqa: BLE001
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED), status
    return status == 0


def _until_one_survives(path: str, name: str, write: Callable[[int], object]) -> dict[str, object]:
    def whole() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            return list(connection.iterdump())

    before = whole()
    num_damaged = 0
    for num_statements in count():
        if _survives(lambda n=num_statements: write(n)):  # type: ignore[misc]
            changed = whole() != before
            return {
                "name": name,
                "num_deaths": num_statements,
                "num_damaged": num_damaged,
                "is_changed_at_last": changed,
            }
        num_damaged += whole() != before
    raise AssertionError


def _migrate(url: str, num_statements: int) -> None:
    create = database.create_engine
    with ExitStack() as stack:

        def create_and_watch(*arguments: object, **options: object) -> Engine:
            engine: Engine = create(*arguments, **options)  # type: ignore[call-overload]
            stack.enter_context(struck_after(engine, num_statements, _die))
            return engine

        with patch.object(database, "create_engine", create_and_watch):
            open_database(url)


def main(path: str) -> None:
    url = f"sqlite:///{path}"
    reports = [_until_one_survives(path, "migrate", lambda n: _migrate(url, n))]

    store = Store(open_database(url))
    lease = in_the_middle(store)
    writes: dict[str, Callable[[], object]] = {
        "submit": lambda: store.submit(spec(), idempotency_key="k", body_sha256="a"),
        "record and end": lambda: LEASE_WRITES["record and end"](lease),
        "finish_sweep": lambda: LEASE_WRITES["finish_sweep"](lease),
    }
    for name, write in writes.items():

        def dying_write(num_statements: int, write: Callable[[], object] = write) -> None:
            with struck_after(store.engine, num_statements, _die):
                write()

        store.engine.dispose()  # no connection may cross a fork
        reports.append(_until_one_survives(path, name, dying_write))
    print(json.dumps(reports))


if __name__ == "__main__":
    main(sys.argv[1])
