"""How is the service put together? Its routes, its errors and its OpenAPI document."""

import threading
from collections.abc import Collection
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from care_sweep.settings import Settings
from care_sweep.storage import open_storage
from care_sweep.store import Store, observe_transactions
from service import control, docs_page, export, metrics, problems, ray_proxy, surroundings, sweeps, trials
from service.access import (
    Access,
    authenticate,
    authenticate_browser,
    authenticate_watcher,
)
from service.door import Door
from service.head import HeadAsGet
from service.headers import SecurityHeaders
from service.measured import MeasuredRequests, Measures
from service.readiness import Readiness
from service.request import refuse_unfit_parameters
from service.schemas import EnqueuedPoint, SweepChange, SweepDocument
from service.tracing import telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["create_app"]

_DESCRIPTION = """Hyperparameter sweeps for CARE: submit a search space, follow it, download the best encoder.

Errors are RFC 9457 problems (`application/problem+json`) that point at what is wrong."""


_SENT = (SweepDocument, SweepChange, EnqueuedPoint, problems.ProblemDocument)


def create_app(
    settings: Settings,
    store: Store,
    *,
    names: Collection[str] | None = None,
    requires_tokens: bool = False,
    tracer: "TracerProvider | None" = None,
) -> FastAPI:
    """The service over a store. Setting `app.state.closing` lets its endless streams end.

    Args:
        names: under which it may be called (`service.origin`); None for any.
        requires_tokens: must be so wherever others than this machine's users can reach it.
        tracer: sends a span of each request.

    Raises:
        StorageError: the settings name an object store, and its library is not installed.
    """
    app = FastAPI(
        title="care-sweep",
        version=version("care-sweep"),
        description=_DESCRIPTION,
        separate_input_output_schemas=False,  # one schema serves the document and the answer that repeats it
        docs_url=None,  # its scripts would come from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # where to, Host would say
        telemetry=telemetry(tracer),
    )
    measures = Measures()
    measures.registry.register(metrics.StoreCollector(store))
    observe_transactions(store.engine, measures.transaction)
    app.add_middleware(Door)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(MeasuredRequests, measures=measures)
    app.add_middleware(HeadAsGet)
    app.state.measures = measures
    app.state.settings, app.state.store, app.state.names = settings, store, names
    app.state.access = Access(
        store.tokens, is_required=requires_tokens, requests_per_second=settings.requests_per_second
    )
    app.state.ray_proxy = ray_proxy.RayProxy(store, settings.ray_token_path)
    app.state.storage = open_storage(settings.storage_uri)
    app.state.readiness = Readiness(store, app.state.storage)
    app.state.closing = threading.Event()
    problems.install(app)
    checks = [Depends(authenticate), Depends(refuse_unfit_parameters)]
    refusals = problems.answers(401, 421, 422, 429, 503)
    for router in (sweeps.router, control.router, trials.router, export.router, surroundings.router):
        app.include_router(router, dependencies=checks, responses=refusals)
    checks = [Depends(authenticate_watcher), Depends(refuse_unfit_parameters)]
    app.include_router(metrics.router, dependencies=checks, responses=refusals)
    checks = [Depends(authenticate_browser)]  # what it takes, it lists itself
    app.include_router(ray_proxy.router, dependencies=checks, responses=problems.answers(401, 421, 429, 503))
    checks = [Depends(refuse_unfit_parameters)]
    app.include_router(surroundings.health, dependencies=checks, responses=problems.answers(422, 429))
    app.include_router(docs_page.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # as FastAPI documents it
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the schemas that no signature names: the request and the problem.

    Without the refusals that FastAPI adds to every route with a parameter: ours say which they give.
    """
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, unnamed = models_json_schema(
            [(model, "validation") for model in _SENT],
            ref_template="#/components/schemas/{model}",
        )
        for operation in (one for path in document["paths"].values() for one in path.values()):
            if problems.MEDIA_TYPE not in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"].pop("422", None)
        schemas = {**unnamed["$defs"], **document["components"]["schemas"]}
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        app.openapi_schema = document
    return app.openapi_schema
