"""How is PostgreSQL kept from being waited for without end? Limits on connecting, locks, sleep and silence.

A server that is stopped, or behind a network that drops packets, refuses nothing: it just says no more.
"""

from collections.abc import Generator
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, event

if TYPE_CHECKING:
    import psycopg

__all__ = ["connect_arguments", "limit_waits"]

_CONNECT_SECONDS = 10
_IDLE_SECONDS = 30
"""A process that sleeps inside a transaction holds its locks no longer: its sweep could not be taken over."""

_SILENT_FOR_SECONDS = 1.0
"""So long after the server was silent, connecting is refused at once: those who queue need not all wait."""

_DEAD_PARTNER = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""How libpq notices within some 10 s that the other machine is gone."""


def connect_arguments(address: URL, answer_seconds: float | None) -> dict[str, Any]:
    """Parameters of libpq for each connection, but for those that the URL gives itself."""
    connect_seconds = _CONNECT_SECONDS if answer_seconds is None else max(2, int(answer_seconds))
    arguments = {"connect_timeout": connect_seconds, **_DEAD_PARTNER}
    return {name: value for name, value in arguments.items() if name not in address.query}


def limit_waits(engine: Engine, answer_seconds: float | None) -> None:
    """Have the server limit each session, and with `answer_seconds` this side limit its silence too."""
    limits: dict[str, float] = {"idle_in_transaction_session_timeout": _IDLE_SECONDS}
    if answer_seconds is not None:
        limits["lock_timeout"] = answer_seconds
        _refuse_silence(engine, answer_seconds + 0.25)  # later than a lock, which the server speaks of
    settings = "; ".join(f"SET {name} = {int(1000 * seconds)}" for name, seconds in limits.items())

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.execute(settings)
        connection.commit()


def _refuse_silence(engine: Engine, seconds: float) -> None:
    """Close a connection on which the server says nothing for so long while it is waited for."""
    import psycopg  # noqa: PLC0415  (an extra)

    silent_at = float("-inf")

    class Impatient(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal silent_at
            try:
                return super().wait(_unless_silent(gen, seconds), *arguments, **options)
            except _SilenceError as error:
                silent_at = monotonic()
                self.pgconn.finish()
                raise psycopg.OperationalError(str(error)) from None

    @event.listens_for(engine, "do_connect")
    def _connect(_: Any, __: Any, arguments: Any, parameters: Any) -> "psycopg.Connection[Any]":
        nonlocal silent_at
        if monotonic() - silent_at < _SILENT_FOR_SECONDS:
            raise psycopg.OperationalError("the server was silent a moment ago")
        try:
            return Impatient.connect(*arguments, **parameters)
        except psycopg.errors.ConnectionTimeout:
            silent_at = monotonic()
            raise


class _SilenceError(Exception):
    """The server says nothing."""


def _unless_silent(generator: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """The same steps of psycopg, told what the socket is ready for, or several times a second nothing."""
    heard_at = monotonic()
    try:
        wanted = next(generator)
        while True:
            ready = yield wanted
            if ready:
                heard_at = monotonic()
            elif monotonic() - heard_at > seconds:
                raise _SilenceError(f"no answer within {seconds:g} s")
            wanted = generator.send(ready)
    except StopIteration as end:
        return end.value
