"""Routes: which sweeps are there, a new one, and what has become of one."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from care_sweep.spec import SweepState
from service import artifacts, findings, submission
from service.access import IsOver
from service.body import Body, described
from service.events import follow
from service.problems import answers
from service.request import (
    IdempotencyKey,
    PageSize,
    PageToken,
    SettingsHeld,
    StorageHeld,
    StoreHeld,
    SweepId,
)
from service.schemas import Best, Resolved, Sweep, SweepPage, SweepSummary

__all__ = ["router"]

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])

_EXAMPLE = {"name": "first-look", "space": "cifar10-mini", "num_trials": 20, "priority": 1.0}

_Sequence = Annotated[int, Query(ge=0, lt=2**63, description="only events after this one")]
_LastEventId = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, lt=2**63, description="what a reader has seen; wins over after"),
]


@router.post(
    "",
    status_code=201,
    responses={
        200: {"model": Resolved | Sweep, "description": "a key that was used before, or validate_only"},
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **answers(403, 408, 409, 413, 415, 422, 503, 507),
    },
    openapi_extra=described("SweepDocument", _EXAMPLE),
)
def submit(
    body: Body,
    store: StoreHeld,
    settings: SettingsHeld,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    validate_only: Annotated[bool, Query(description="answer the resolved sweep and write nothing")] = False,
) -> Sweep | Resolved:
    """Submit a sweep, as JSON or YAML. What was answered with 201 is durable."""
    if validate_only:
        response.status_code = 200
        return Resolved(spec=submission.accept(body, settings, store))
    record, is_new = submission.submit(body, settings, store, idempotency_key)
    sweep = Sweep.tagged(record, response)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = sweep.links.self
    return sweep


@router.get("", responses=answers(422, 503))
def list_sweeps(
    store: StoreHeld,
    page_size: PageSize = 50,
    page_token: PageToken = None,
    state: Annotated[list[SweepState], Query(description="only sweeps in one of these states")] = [],  # noqa: B006
) -> SweepPage:
    """Sweeps, newest first."""
    page = store.sweeps(states=state, page_size=page_size, page_token=page_token)
    return SweepPage(sweeps=[SweepSummary.of(one) for one in page.items], next_page_token=page.next_token)


@router.get("/{sweep_id:segment}", responses=answers(404, 503))
def get_sweep(sweep_id: SweepId, store: StoreHeld, response: Response) -> Sweep:
    """One sweep, with the whole document it runs; its ETag is what If-Match of a change names."""
    return Sweep.tagged(store.sweep(sweep_id), response)


@router.get("/{sweep_id:segment}/best", responses=answers(404, 422, 503))
def best(
    sweep_id: SweepId,
    store: StoreHeld,
    k: Annotated[int, Query(ge=1, le=1000, description="how many configurations")] = 5,
) -> Best:
    """The best configurations beside the baselines, and what the evidence is worth."""
    return findings.best(store, sweep_id, k)


@router.get(
    "/{sweep_id:segment}/checkpoints/best",
    response_class=Response,
    responses=artifacts.CHECKPOINT_RESPONSES,
)
def best_checkpoint(sweep_id: SweepId, store: StoreHeld, storage: StorageHeld, request: Request) -> Response:
    """The checkpoint of the best configuration so far."""
    trial = findings.best_trial(store, sweep_id)
    return artifacts.checkpoint_response(storage, trial, request.headers)


def _sweep_exists(sweep_id: SweepId, store: StoreHeld) -> None:
    store.state(sweep_id)  # before the stream begins, while a 404 can still be answered


@router.get(
    "/{sweep_id:segment}/events",
    response_class=EventSourceResponse,
    responses=answers(404, 422, 503),
    dependencies=[Depends(_sweep_exists)],
)
async def events(
    sweep_id: SweepId,
    store: StoreHeld,
    is_over: IsOver,
    after: _Sequence = 0,
    last_event_id: _LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `id` is the sequence, `event` the kind. The stream ends when the sweep has."""
    seen = after if last_event_id is None else last_event_id
    async for event in follow(store, sweep_id, seen, is_over):
        yield event
