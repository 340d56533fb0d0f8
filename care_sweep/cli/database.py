"""What does an operator do with the database while nothing runs? `care-sweep db upgrade | check | copy`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from care_sweep.cli.options import Command, Json, app, print_answer
from care_sweep.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["check", "copy", "upgrade"]

_database = typer.Typer(help="Upgrade, check or copy the database.", no_args_is_help=True)
app.add_typer(_database, name="db")

_Url = Annotated[
    str | None,
    typer.Argument(metavar="[URL]", help="Of SQLAlchemy (default: CARE_SWEEP_DATABASE_URL, else SQLite)."),
]


@_database.command(cls=Command)
def upgrade(url: _Url = None, as_json: Json = False) -> None:
    """Bring a database to this version's schema, as `serve` does at its start; an empty one is set up."""
    from care_sweep.store.database import reading, schema_version  # noqa: PLC0415

    with _opened(url) as engine, reading(engine) as connection:
        version = schema_version(connection)
    print_answer({"schema_version": version}, f"the database has schema {version}", as_json)


@_database.command(cls=Command)
def check(url: _Url = None, as_json: Json = False) -> None:
    """Look for damage and for rows that contradict each other; exit status 1 where there are any.

    Nothing is changed: a database that is not there is not made, and one of an older version not upgraded.
    """
    from care_sweep.store.maintenance import check as problems_of  # noqa: PLC0415
    from care_sweep.store.maintenance import table_hashes  # noqa: PLC0415

    with _opened(url, as_it_is=True) as engine:
        problems, hashes = problems_of(engine), table_hashes(engine)
    rows = {name: one.num_rows for name, one in hashes.items()}
    counted = ", ".join(f"{number} {name}" for name, number in rows.items())
    said = "\n".join(problems) or f"all is well: {counted}"
    print_answer({"problems": problems, "num_rows": rows}, said, as_json)
    if problems:
        raise typer.Exit(1)


@_database.command(cls=Command)
def copy(
    source: Annotated[str, typer.Argument(help="The database to read; nothing may run on it.")],
    target: Annotated[str, typer.Argument(help="An empty one, or one that is not there yet.")],
    as_json: Json = False,
) -> None:
    """Copy all rows from one database into another, of whichever kind, and compare their hashes."""
    from care_sweep.store.maintenance import copy as copy_rows  # noqa: PLC0415

    with _opened(source, as_it_is=True) as old, _opened(target) as new:
        hashes = copy_rows(old, new)
    answer = {name: {"num_rows": one.num_rows, "sha256": one.sha256} for name, one in hashes.items()}
    lines = [f"{name:20} {one.num_rows:8} rows  sha256 {one.sha256[:16]}" for name, one in hashes.items()]
    print_answer(answer, "\n".join([*lines, "equal in both databases"]), as_json)


@contextmanager
def _opened(url: str | None, *, as_it_is: bool = False) -> "Iterator[Engine]":
    from care_sweep.store.database import open_as_it_is, open_database  # noqa: PLC0415

    address = url or Settings.from_environment().database_url
    engine = open_as_it_is(address) if as_it_is else open_database(address)
    try:
        yield engine
    finally:
        engine.dispose()
