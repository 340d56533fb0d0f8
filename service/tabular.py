"""How does a table become a file? CSV that no spreadsheet runs, or Parquet, a batch of rows at a time."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import IO, Any

__all__ = ["Cell", "Table", "write_csv", "write_parquet"]

_BATCH_ROWS = 5000
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")

Cell = bool | int | float | str | datetime | None


@dataclass(frozen=True)
class Table:
    """Rows with a cell for each column, of the column's type or None; moments are in UTC."""

    columns: Mapping[str, type]
    rows: Iterable[Sequence[Cell]]


def write_csv(table: Table, file: IO[bytes]) -> None:
    """Write UTF-8 with a header; equal rows make equal bytes.

    Text that a spreadsheet would take for a formula begins with an apostrophe, as OWASP advises; numbers are
    numbers, negative ones too.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)  # lines end as RFC 4180 wants them; with \n alone it would leave \r unquoted
    writer.writerow(map(_csv_cell, table.columns))
    writer.writerows(map(_csv_cell, row) for row in table.rows)
    text.detach()


def _csv_cell(cell: Cell) -> Any:
    match cell:
        case str() if cell.startswith(_FORMULA_BEGINS):
            return f"'{cell}"
        case bool():
            return "true" if cell else "false"
        case datetime():
            return cell.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return cell  # None becomes an empty cell, a float the shortest text that reads back as itself


def write_parquet(table: Table, file: IO[bytes]) -> None:
    """Write a row group for each batch of rows."""
    import pyarrow as pa  # noqa: PLC0415  (50 MB that only this should cost)
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    types[datetime] = pa.timestamp("us", tz="UTC")
    schema = pa.schema([(name, types[kind]) for name, kind in table.columns.items()])
    remaining = iter(table.rows)
    with ParquetWriter(file, schema) as writer:
        while rows := list(islice(remaining, _BATCH_ROWS)):
            cells = zip(schema.types, zip(*rows, strict=True), strict=True)
            writer.write_batch(pa.record_batch([pa.array(each, kind) for kind, each in cells], schema=schema))
