"""Which bytes of the storage may leave by HTTP, and are they the ones that were stored?"""

import base64
import hashlib
import logging
import re
import time
from functools import lru_cache
from typing import Any

from fastapi import HTTPException
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import Headers

from care_sweep.errors import CheckpointError, NotFound, StorageError
from care_sweep.layout import trial_prefix
from care_sweep.spec import CheckpointReference, TrialState
from care_sweep.storage import Storage, StoredObject
from care_sweep.store import TrialRecord
from service.problems import answers

__all__ = ["CHECKPOINT_RESPONSES", "checkpoint_response", "out_of_reach"]

_log = logging.getLogger(__name__)
_CHECKPOINT = re.compile(r"attempt-\d{1,10}/checkpoint\.tar")
"""The names are made by workers; whatever a row says, nothing else leaves, a training state least of all."""

_SETTLED_SECONDS = 2.0
"""So long after a write, another one of the same size may leave a file with the times it had."""

_TAR = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}

CHECKPOINT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The checkpoint", "content": _TAR},
    206: {"description": "The range of it that was asked for", "content": _TAR},
    304: {"description": "The reader has it already"},
    **answers(404, 416, 503),
    410: {**answers(410)[410], "description": "The storage has lost it, or it was not kept"},
    500: {**answers(500)[500], "description": "What the storage holds is not what was stored"},
}


def checkpoint_response(storage: Storage, trial: TrialRecord, headers: Headers) -> Response:
    """The trial's checkpoint, or the one range of it that was asked for.

    The whole of it is verified before its first byte is sent, once for each version of the object.

    Raises:
        NotFound: the trial has no checkpoint yet, or never had one.
        CheckpointError: it is not the one that was stored.
        StorageError: the storage is out of reach or refuses.
        HTTPException: 410, it is gone; 416, the range lies outside it.
    """
    stored = trial.checkpoint
    if stored is None and trial.state is TrialState.COMPLETE:
        raise HTTPException(410, _lost(trial, "was not kept, for others were better"))
    if stored is None:
        raise NotFound(f"trial {trial.number} has no checkpoint; it is {trial.state}")
    found = _verified(storage, trial, stored)
    digest = base64.b64encode(bytes.fromhex(stored.sha256)).decode()
    answer = {
        "ETag": f'"{stored.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{trial.sweep_id}-trial-{trial.number:05d}.tar"',
    }
    if _names(headers.get("if-none-match"), answer["ETag"]):
        return Response(status_code=304, headers=answer)
    size = found.size_bytes
    wanted = headers.get("range") if headers.get("if-range", answer["ETag"]) == answer["ETag"] else None
    part = _single_range(wanted, size)
    if part is None:
        start, stop, code = 0, size, 200
    else:
        start, stop, code = part.start, part.stop, 206
        answer["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    answer["Content-Length"] = str(stop - start)
    content = storage.read(found.key, start, stop, version=found.version)
    return StreamingResponse(content, code, answer, media_type="application/x-tar")


def _verified(storage: Storage, trial: TrialRecord, stored: CheckpointReference) -> StoredObject:
    if not _CHECKPOINT.fullmatch(stored.name):
        raise NotFound(f"trial {trial.number} has no checkpoint; {stored.name[:100]!r} is the name of none")
    try:
        found = storage.head(f"{trial_prefix(trial.sweep_id, trial.number)}/{stored.name}")
        if found.size_bytes != stored.size_bytes:
            how = f"is damaged (it has {found.size_bytes} bytes, stored were {stored.size_bytes})"
            raise CheckpointError(_lost(trial, how))
        sha256 = _sha256_of(storage, found)
    except NotFound:
        raise HTTPException(410, _lost(trial, "is no longer in the storage")) from None
    except StorageError as error:
        raise out_of_reach(f"the checkpoint of trial {trial.number}", error) from error
    if sha256 != stored.sha256:
        raise CheckpointError(
            _lost(trial, f"is damaged (its SHA-256 is {sha256}, stored was {stored.sha256})")
        )
    return found


def _lost(trial: TrialRecord, how: str) -> str:
    """What has become of a checkpoint, and what can be had instead."""
    return (
        f"the checkpoint of trial {trial.number} {how}; `care-sweep download {trial.sweep_id} --trial N` "
        f"fetches another trial's, and `care-sweep train` with the parameters that `care-sweep show "
        f"{trial.sweep_id}` lists makes this one again"
    )


def out_of_reach(what: str, error: StorageError) -> StorageError:
    """The error for a reader, who need not know where the storage is; the log does."""
    _log.error("%s", error)
    return StorageError(f"{what} cannot be read now; try again in a while")


def _sha256_of(storage: Storage, found: StoredObject) -> str:
    if time.time() - found.modified_at < _SETTLED_SECONDS:
        return _sha256(storage, found)
    return _remembered_sha256(storage, found)


def _sha256(storage: Storage, found: StoredObject) -> str:
    digest = hashlib.sha256()
    for chunk in storage.read(found.key, 0, found.size_bytes, version=found.version):
        digest.update(chunk)
    return digest.hexdigest()


_remembered_sha256 = lru_cache(maxsize=1024)(_sha256)


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
