"""Which bytes below `storage_uri` may leave by HTTP, and are they the ones that were stored?"""

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import Headers

from care_sweep.errors import CheckpointError, NotFound
from care_sweep.layout import sweep_directory, trial_directory
from care_sweep.store import TrialRecord
from service.problems import answers

__all__ = ["CHECKPOINT_RESPONSES", "checkpoint_response", "discard", "log_response"]

_CHUNK_BYTES = 256 * 1024
_TAR = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}

CHECKPOINT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The checkpoint", "content": _TAR},
    206: {"description": "The range of it that was asked for", "content": _TAR},
    304: {"description": "The reader has it already"},
    **answers(404, 416, 503),
    410: {**answers(410)[410], "description": "The storage has lost it"},
    500: {**answers(500)[500], "description": "What the storage holds is not what was stored"},
}


def checkpoint_response(storage: Path, trial: TrialRecord, headers: Headers) -> Response:
    """The trial's checkpoint, or the one range of it that was asked for.

    The whole file is verified before its first byte is sent, once for each state of the file.

    Raises:
        NotFound: the trial has no checkpoint.
        CheckpointError: the file cannot be read, or is not the one that was stored.
        HTTPException: 410, the file is gone; 416, the range lies outside it.
    """
    stored = trial.checkpoint
    if stored is None:
        raise NotFound(f"trial {trial.number} has no checkpoint; it is {trial.state}")
    path = _below(trial_directory(storage, trial.sweep_id, trial.number), stored.name)
    status = _verified(path, stored.sha256, trial)
    digest = base64.b64encode(bytes.fromhex(stored.sha256)).decode()
    answer = {
        "ETag": f'"{stored.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{trial.sweep_id}-trial-{trial.number:05d}.tar"',
    }
    if _names(headers.get("if-none-match"), answer["ETag"]):
        return Response(status_code=304, headers=answer)
    size = status.st_size
    wanted = headers.get("range") if headers.get("if-range", answer["ETag"]) == answer["ETag"] else None
    part = _single_range(wanted, size)
    if part is None:
        start, stop, code = 0, size, 200
    else:
        start, stop, code = part.start, part.stop, 206
        answer["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    answer["Content-Length"] = str(stop - start)
    return StreamingResponse(_chunks(path, start, stop), code, answer, media_type="application/x-tar")


def log_response(storage: Path, trial: TrialRecord, attempt: int) -> Response:
    """What one attempt has logged so far.

    Raises:
        NotFound: there was no such attempt, or it has logged nothing yet.
    """
    path = _below(trial_directory(storage, trial.sweep_id, trial.number), f"attempt-{attempt}/log.txt")
    if not 1 <= attempt <= trial.attempt:
        raise NotFound(f"trial {trial.number} has no attempt {attempt}; its last is {trial.attempt}")
    if not path.is_file():
        raise NotFound(f"attempt {attempt} of trial {trial.number} has logged nothing yet")
    size = path.stat().st_size  # a running attempt appends while this is read
    headers = {"Content-Length": str(size), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_chunks(path, 0, size), 200, headers, media_type="text/plain; charset=utf-8")


def _below(root: Path, name: str) -> Path:
    """`root / name` with links followed, if it still lies below `root`."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise NotFound(f"{name!r} does not lie in the trial's directory")
    return path


def _verified(path: Path, sha256: str, trial: TrialRecord) -> os.stat_result:
    try:
        status = path.stat()
        found = _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise HTTPException(410, _lost(trial, "is no longer in the storage")) from None
    except OSError as error:
        raise CheckpointError(_lost(trial, f"cannot be read ({error.strerror})")) from error
    if found != sha256:
        raise CheckpointError(_lost(trial, f"is damaged (its SHA-256 is {found}, stored was {sha256})"))
    return status


def _lost(trial: TrialRecord, how: str) -> str:
    """What has become of a checkpoint, and what can be had instead."""
    return (
        f"the checkpoint of trial {trial.number} {how}; `care-sweep download {trial.sweep_id} --trial N` "
        f"fetches another trial's, and `care-sweep train` with the parameters that `care-sweep show "
        f"{trial.sweep_id}` lists makes this one again"
    )


@lru_cache(maxsize=1024)
def _sha256(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    """The file's hash; inode, size and time only tell its states apart."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(if_none_match: str | None, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def _single_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for; None for all of them.

    RFC 9110 lets a server ignore a header that is malformed or asks for several ranges.
    """
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-":
        return None
    first, last = asked[1], asked[2]
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        detail = f"the checkpoint has {size} bytes: a range must begin at 0 to {size - 1}"
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
    return range(start, stop)


def _chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(_CHUNK_BYTES, stop - start))
            if not chunk:
                raise OSError(f"{path} became shorter while it was sent")
            start += len(chunk)
            yield chunk


def discard(storage: Path, sweep_id: str) -> None:
    """Delete all that a sweep has left, once no row points at it."""
    shutil.rmtree(sweep_directory(storage, sweep_id), ignore_errors=True)
