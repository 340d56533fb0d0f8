"""What does the service measure of itself? Its requests, its open streams and its store's transactions."""

import time
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MeasuredRequests", "Measures"]

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TRANSACTION_SECONDS = (0.0005, *_REQUEST_SECONDS[:-1])
_METHODS = frozenset({"DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"})
_OTHER = "other"
"""The label of a method or path that we do not have: nobody can make new ones."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # a further series each, which nobody asks for


class Measures:
    """The instruments of one service, in a registry of its own. Used from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Info("care_sweep_build", "The version that runs", registry=self.registry)
        build.info({"version": version("care-sweep")})
        self.requests = Counter(
            "care_sweep_http_requests",
            "Requests that were answered, by the route's path in the OpenAPI document",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "care_sweep_http_request_seconds",
            "From a request's head to the head of its answer; what is streamed comes after",
            ("route", "method"),
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self.open_streams = Gauge(
            "care_sweep_open_event_streams",
            "Streams of server-sent events that are open now",
            registry=self.registry,
        )
        self._transaction_seconds = Histogram(
            "care_sweep_store_transaction_seconds",
            "A transaction of the database, from the wait for a connection to the durable commit",
            ("kind",),
            buckets=_TRANSACTION_SECONDS,
            registry=self.registry,
        )

    def transaction(self, kind: str, seconds: float) -> None:
        self._transaction_seconds.labels(kind).observe(seconds)


class MeasuredRequests:
    """Middleware that measures each request, refused ones too."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, is_stream = time.perf_counter(), 0, False

        async def send_measured(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                self._answered(scope, status, time.perf_counter() - began)
                is_stream = Headers(scope=message).get("content-type", "").startswith("text/event-stream")
                if is_stream:
                    self._measures.open_streams.inc()
            await send(message)

        try:
            await self._app(scope, receive, send_measured)
        except Exception:
            if not status:  # a bug: it is answered outside of all middleware
                self._answered(scope, 500, time.perf_counter() - began)
            raise
        finally:
            if is_stream:
                self._measures.open_streams.dec()

    def _answered(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", _OTHER)
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        self._measures.requests.labels(route, method, str(status)).inc()
        self._measures.request_seconds.labels(route, method).observe(seconds)
