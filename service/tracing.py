"""Where do spans of requests go? To the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, if it names one."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig

from care_sweep.errors import InvalidDocument, Problem

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["telemetry", "tracer_provider"]

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_UNTRACED = ("/healthz", "/readyz", "/metrics")  # what machines ask, many times a minute


def tracer_provider(environment: Mapping[str, str] = os.environ) -> "TracerProvider | None":
    """What sends spans, as OTLP over HTTP; None where no collector is named.

    Its `shutdown` sends those that wait. OpenTelemetry's own variables say the rest, as OTEL_SERVICE_NAME and
    OTEL_EXPORTER_OTLP_HEADERS.

    Raises:
        InvalidDocument: a collector is named, and the packages that speak to it are not installed.
    """
    if not environment.get(_ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        detail = f"needs a package that is not there ({error.name}): pip install 'care-sweep[opentelemetry]'"
        raise InvalidDocument([Problem(_ENDPOINT, detail)]) from error
    named = Resource({"service.name": "care-sweep"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def telemetry(provider: "TracerProvider | None") -> TelemetryConfig:
    """What FastAPI sends with it: a span of each request. /metrics has figures, and the log has errors."""
    config: TelemetryConfig = {
        "tracing": provider is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": _is_untraced,
    }
    if provider is not None:
        config["tracer_provider"] = provider
    return config


def _is_untraced(scope: Mapping[str, Any]) -> bool:
    return scope.get("path") in _UNTRACED
