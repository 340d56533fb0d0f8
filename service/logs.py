"""What does an attempt log? So far, and as it goes on."""

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from care_sweep.errors import DatabaseUnavailable, NotFound, StorageError
from care_sweep.layout import LOG_NAME, attempt_prefix, trial_prefix
from care_sweep.storage import Storage
from care_sweep.store import Store, TrialRecord
from service.artifacts import out_of_reach
from service.problems import answers

__all__ = ["LOG_RESPONSES", "AttemptLog"]

_POLL_SECONDS = 0.5
_CHUNK_BYTES = 2**20  # in memory at once for each reader
_UPLOAD_SECONDS = 5.0
"""The last lines of an attempt come to an object store after its end, but not so long after."""

_MEDIA_TYPE = "text/plain; charset=utf-8"
_AS_IT_COMES = {"X-Accel-Buffering": "no"}  # proxies must not hold it back
_log = logging.getLogger(__name__)

LOG_RESPONSES: dict[int | str, dict[str, Any]] = {
    204: {"description": "with `follow`: the attempt has ended and there is nothing after `after`"},
    **answers(404, 422, 503),
}


class AttemptLog:
    """The log of one attempt, for one reader. Raises NotFound where there was no such attempt."""

    def __init__(self, store: Store, storage: Storage, trial: TrialRecord, attempt: int) -> None:
        if not 1 <= attempt <= trial.attempt:
            raise NotFound(f"trial {trial.number} has no attempt {attempt}; its last is {trial.attempt}")
        self._store = store
        self._storage = storage
        self._trial = trial
        self._attempt = attempt
        self._key = f"{attempt_prefix(trial_prefix(trial.sweep_id, trial.number), attempt)}/{LOG_NAME}"
        self._seen_running_at = -math.inf

    def so_far(self, after: int) -> Response:
        """What there is after so many bytes.

        Raises:
            NotFound: the attempt has logged nothing yet.
            StorageError: the storage is out of reach or refuses.
        """
        size = self._size()
        if size is None:
            raise NotFound(f"attempt {self._attempt} of trial {self._trial.number} has logged nothing yet")
        start = min(after, size)
        headers = {"Content-Length": str(size - start)}
        content = self._storage.read(self._key, start, size)  # a running attempt appends meanwhile
        return StreamingResponse(content, 200, headers, media_type=_MEDIA_TYPE)

    def followed(self, after: int, is_over: Callable[[], Awaitable[bool]]) -> Response:
        """What comes after so many bytes, as it comes; 204 where nothing will.

        The stream ends when the attempt has, when it is over, and where store or storage are away.

        Raises:
            StorageError: the storage is out of reach or refuses.
        """
        content, is_all = self._look(after)
        if is_all and not content:
            return Response(status_code=204)
        stream = self._stream(content, is_all, after, is_over)
        return StreamingResponse(stream, 200, _AS_IT_COMES, media_type=_MEDIA_TYPE)

    async def _stream(
        self, content: bytes, is_all: bool, after: int, is_over: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        while True:
            if content:
                after += len(content)
                yield content
            if is_all:
                return
            if len(content) < _CHUNK_BYTES:
                await anyio.sleep(_POLL_SECONDS)
            try:
                if await is_over():
                    return
                content, is_all = await run_in_threadpool(self._look, after)
            except (NotFound, StorageError):  # the sweep was deleted, or the storage is away and that is told
                return
            except DatabaseUnavailable as error:
                _log.error("%s: %s", self._key, error)
                return

    def _look(self, after: int) -> tuple[bytes, bool]:
        """What is new, at most a chunk, and whether nothing will come after it.

        Asked in the other order, so that nothing is logged in between.
        """
        has_ended = self._has_ended()
        size = self._size() or 0
        stop = min(size, after + _CHUNK_BYTES)
        try:
            content = next(self._storage.read(self._key, after, stop)) if after < stop else b""
        except StorageError as error:
            raise self._away(error) from error
        return content, has_ended and size <= after + _CHUNK_BYTES

    def _has_ended(self) -> bool:
        """Whether the attempt has ended, so long ago that its last lines are here.

        Clocks of two machines meet here: where they differ, a reader who was not there at the end may lack
        the last lines, and finds them when it asks again.
        """
        attempts = self._store.attempts(self._trial.sweep_id, self._trial.number)
        ended_at = next(one.finished_at for one in attempts if one.attempt == self._attempt)
        if ended_at is None:
            self._seen_running_at = time.monotonic()
            return False
        if self._storage.local_path(self._key) is not None:
            return True  # written in its place
        just_ended = 0 <= self._store.clock() - ended_at < _UPLOAD_SECONDS
        return not just_ended and time.monotonic() - self._seen_running_at >= _UPLOAD_SECONDS

    def _size(self) -> int | None:
        """In bytes; None before anything was logged."""
        try:
            return self._storage.head(self._key).size_bytes
        except NotFound:
            return None
        except StorageError as error:
            raise self._away(error) from error

    def _away(self, error: StorageError) -> StorageError:
        return out_of_reach(f"the log of trial {self._trial.number}", error)
