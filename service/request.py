"""What does every route need: the store as its caller sees it, storage and settings, and its parameters."""

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor

from care_sweep.documents import pointer, shorten, unknown_keys
from care_sweep.errors import InvalidDocument, Problem
from care_sweep.settings import Settings
from care_sweep.storage import Storage
from care_sweep.store import Store
from service.access import CallerHeld
from service.readiness import Readiness

__all__ = [
    "IdempotencyKey",
    "PageSize",
    "PageToken",
    "ReadinessHeld",
    "SettingsHeld",
    "StorageHeld",
    "StoreHeld",
    "SweepId",
    "TrialNumber",
    "refuse_unfit_parameters",
]


class _Segment(StringConvertor):
    """What stands between slashes, up to the colon of a verb: in `/v1/sweeps/ID:verb` the id alone."""

    regex = "[^/:]+"


register_url_convertor("segment", _Segment())


async def refuse_unfit_parameters(request: Request) -> None:
    """A misspelt `validate_only`, or one that says true and false, must not start a sweep."""
    if request.query_params:
        await run_in_threadpool(_refuse_unfit_parameters, request)


def _refuse_unfit_parameters(request: Request) -> None:
    route: APIRoute = request.scope["route"]
    operation = request.app.openapi()["paths"][route.path_format][request.method.lower()]
    known = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "query"}
    strangers = [name for name in request.query_params if name not in known]
    problems = list(unknown_keys(strangers, list(known), "/query"))
    for name, parameter in known.items():
        given = request.query_params.getlist(name)
        if len(given) > 1 and parameter["schema"].get("type") != "array":
            problems.append(Problem(pointer("query", name), "give it once", shorten(given)))
    if problems:
        raise InvalidDocument(problems)


# What is only looked up is `async`: FastAPI sends every other dependency to a thread, at each request.


async def _store(request: Request, caller: CallerHeld) -> Store:
    store: Store = request.app.state.store
    return store.seen_by(caller)


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


async def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


StoreHeld = Annotated[Store, Depends(_store)]
SettingsHeld = Annotated[Settings, Depends(_settings)]
StorageHeld = Annotated[Storage, Depends(_storage)]
ReadinessHeld = Annotated[Readiness, Depends(_readiness)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="names this request for 24 hours: sent again, it makes nothing new and answers the sweep",
    ),
]
SweepId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="the id that a submission answered")
]
TrialNumber = Annotated[int, Path(ge=0, lt=2**31, description="trials count from 0")]
PageSize = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
PageToken = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,18}$", description="the next_page_token of the page before")
]
