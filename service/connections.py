"""How long is a client waited for? Long enough for a slow network, not for one who holds connections open."""

import asyncio
import resource
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ImpatientProtocol", "allow_many", "listen"]

_HEAD_SECONDS = 10.0


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which waits for a request's head no longer than this, however it drips in.

    uvicorn's own limits end a connection that is idle between two requests, and `limit_concurrency` counts
    connections that never asked for anything: those of an attacker would shut out everybody else's.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._stop_once_begun()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()  # which begins with a request that came meanwhile
        self._stop_once_begun()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._stop()
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_once_begun(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send at once: asyncio sets that only where it made the socket.

    A name that has addresses of both families is taken for its IPv4 one, and `::` is IPv6 alone.

    Raises:
        OSError: the host has no address, or none of this machine's; the port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listening = socket.create_server(address, family=family, backlog=2048)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def allow_many() -> None:
    """Have as many connections as the system lets this process have; by default it may be 1024 files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
