"""How does the service start? `python -m service --host 127.0.0.1 --port 8484` (port 0 takes a free one)."""

import argparse
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi.concurrency import run_in_threadpool

from care_sweep.errors import DatabaseError, InvalidDocument, StorageError
from care_sweep.log_lines import begin_logging
from care_sweep.settings import Settings
from care_sweep.store import Store, open_database
from service.app import create_app
from service.connections import ImpatientProtocol, allow_many, listen
from service.origin import own_names
from service.tracing import tracer_provider

__all__ = ["main"]

_ANSWER_SECONDS = 4.0  # of the database, so that a request hears within 5 that it has none
_log = logging.getLogger(__name__)
_GRACE_SECONDS = 10  # for requests in flight; without it an open stream would hold the process for ever


class _Server(uvicorn.Server):
    """Tells one machine-readable line when it is ready, and its streams when it is told to end.

    `at_end` is called when the last request has been answered; the signal ends the process after that.
    """

    def __init__(self, config: uvicorn.Config, closing: threading.Event, at_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing
        self._at_end = at_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            print(f"listening on http://{_authority(host, port)}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await run_in_threadpool(self._at_end)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing.set()
        super().handle_exit(sig, frame)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8484)
    arguments = parser.parse_args()
    begin_logging("%(asctime)s %(levelname)s %(name)s: %(message)s")
    allow_many()
    try:
        settings = Settings.from_environment()
        listening = listen(arguments.host, arguments.port)
        store = Store(open_database(settings.database_url, answer_seconds=_ANSWER_SECONDS))
        address = listening.getsockname()[0]
        names = own_names(arguments.host, address, settings.hosts)
        requires_tokens = settings.requires_tokens(address)
        if requires_tokens and not store.tokens.list():
            _log.warning("there is no token yet: `care-sweep token create NAME --scope submit` makes one")
        tracer = tracer_provider()
        app = create_app(settings, store, names=names, requires_tokens=requires_tokens, tracer=tracer)
    except (OSError, OverflowError, DatabaseError, StorageError, InvalidDocument) as error:
        where = _authority(arguments.host, arguments.port)
        print(f"the service cannot start on {where}: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        lifespan="off",
    )
    with contextlib.suppress(KeyboardInterrupt):
        end_tracing = tracer.shutdown if tracer else lambda: None
        _Server(config, app.state.closing, end_tracing).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
