"""What happens in a sweep, told as it happens: server-sent events from the store's outbox."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import anyio
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent

from care_sweep.errors import DatabaseUnavailable
from care_sweep.store import EventRecord, Store
from service.schemas import Event

__all__ = ["follow"]

_POLL_SECONDS = 0.3
_RECONNECT_MILLISECONDS = 1000
_log = logging.getLogger(__name__)


async def follow(
    store: Store, sweep_id: str, after: int, is_over: Callable[[], Awaitable[bool]]
) -> AsyncIterator[ServerSentEvent]:
    """Every event of the sweep that comes after `after`, once and in order, until the sweep has ended.

    A stream that ends for another reason (it is over, the database is away) says so with a last `retry`
    field: its reader comes back with Last-Event-ID and misses nothing.
    """
    while True:
        try:
            if await is_over():
                break
            ended, batch = await run_in_threadpool(_look, store, sweep_id, after)
        except DatabaseUnavailable as error:
            _log.error("events of sweep %s: %s", sweep_id, error)
            break
        for record in batch:
            yield ServerSentEvent(data=Event.of(record), event=record.kind, id=str(record.sequence))
            after = record.sequence
        if not batch:
            if ended:
                return
            await anyio.sleep(_POLL_SECONDS)
    yield ServerSentEvent(retry=_RECONNECT_MILLISECONDS)


def _look(store: Store, sweep_id: str, after: int) -> tuple[bool, Sequence[EventRecord]]:
    """Whether the sweep had ended, and then what is new: in this order nothing can slip in between."""
    return store.state(sweep_id).is_terminal, store.events(sweep_id, after=after)
