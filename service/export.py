"""Route: a sweep as one file, for a spreadsheet, for a data frame, for Optuna."""

import base64
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from care_sweep.errors import InvalidDocument, Problem
from care_sweep.search.optuna_file import write_study
from care_sweep.store import Store, SweepRecord
from service.export_rows import measurement_table, stored_trials, trial_table
from service.problems import answers
from service.request import StoreHeld, SweepId
from service.tabular import write_csv, write_parquet

__all__ = ["router"]

router = APIRouter(prefix="/v1/sweeps/{sweep_id:segment}/export", tags=["sweeps"])

_Format = Literal["csv", "parquet", "optuna"]
_Rows = Literal["trials", "measurements"]

_CHUNK_BYTES = 2**20
_ENDINGS = {"csv": "csv", "parquet": "parquet", "optuna": "db"}
_MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "optuna": "application/vnd.sqlite3",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {media_type.partition(";")[0]: _BINARY for media_type in _MEDIA_TYPES.values()},
    },
    **answers(404, 422, 503, 507),
}


@router.get("", response_class=Response, responses=_RESPONSES)
def export(
    sweep_id: SweepId,
    store: StoreHeld,
    file_format: Annotated[
        _Format,
        Query(alias="format", description="optuna is a SQLite file; the study in it is named as the sweep"),
    ] = "csv",
    rows: Annotated[
        _Rows | None, Query(description="of csv and parquet: one a trial (the default) or one a measurement")
    ] = None,
) -> Response:
    """A sweep as one file: its trials with their whole configurations, or its measurements.

    Text of a CSV cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    if file_format == "optuna" and rows is not None:
        detail = "is for csv and parquet; a file for Optuna has trials and measurements, so leave it out"
        raise InvalidDocument([Problem("/query/rows", detail, rows)])
    sweep = store.sweep(sweep_id)
    what = "optuna" if file_format == "optuna" else rows or "trials"
    with tempfile.TemporaryDirectory(prefix="care-sweep-export-") as folder:
        path = Path(folder) / f"{sweep_id}-{what}.{_ENDINGS[file_format]}"
        _write(path, store, sweep, file_format, what)
        return _sent(path, _MEDIA_TYPES[file_format])


def _write(path: Path, store: Store, sweep: SweepRecord, file_format: _Format, what: str) -> None:
    if file_format == "optuna":
        return write_study(path, sweep.id, sweep.spec, stored_trials(store, sweep))
    table = trial_table(store, sweep) if what == "trials" else measurement_table(store, sweep)
    with path.open("wb") as file:
        (write_csv if file_format == "csv" else write_parquet)(table, file)
    return None


def _sent(path: Path, media_type: str) -> Response:
    """The file under its name. It is open by then, and may lose its place: whatever comes, nothing stays."""
    file = path.open("rb")
    digest = base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
    headers = {
        "Content-Length": str(file.tell()),
        "Content-Disposition": f'attachment; filename="{path.name}"',
        "Repr-Digest": f"sha-256=:{digest}:",
    }
    return StreamingResponse(_chunks(file), 200, headers, media_type=media_type)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
