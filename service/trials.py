"""Routes: the trials of a sweep, and what each measured, logged and left."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from care_sweep.spec import TrialState
from service import artifacts
from service.access import IsOver
from service.logs import LOG_RESPONSES, AttemptLog
from service.problems import answers
from service.request import PageSize, PageToken, StorageHeld, StoreHeld, SweepId, TrialNumber
from service.schemas import Measurements, Trial, TrialDetail, TrialPage

__all__ = ["router"]

router = APIRouter(prefix="/v1/sweeps/{sweep_id:segment}/trials", tags=["trials"])


@router.get("", responses=answers(404, 422, 503))
def list_trials(
    sweep_id: SweepId,
    store: StoreHeld,
    page_size: PageSize = 100,
    page_token: PageToken = None,
    state: Annotated[list[TrialState], Query(description="only trials in one of these states")] = [],  # noqa: B006
) -> TrialPage:
    """Trials by number."""
    page = store.trials(sweep_id, states=state, page_size=page_size, page_token=page_token)
    return TrialPage(trials=[Trial.of(one) for one in page.items], next_page_token=page.next_token)


@router.get("/{number:segment}", responses=answers(404, 503))
def get_trial(sweep_id: SweepId, number: TrialNumber, store: StoreHeld) -> TrialDetail:
    """One trial, with each of its attempts."""
    attempts = store.attempts(sweep_id, number)
    return TrialDetail.with_attempts(store.trial(sweep_id, number), attempts, store.cluster())


@router.get("/{number:segment}/measurements", responses=answers(404, 503))
def measurements(sweep_id: SweepId, number: TrialNumber, store: StoreHeld) -> Measurements:
    """What each epoch reported."""
    store.trial(sweep_id, number)
    return Measurements.of(store.measurements(sweep_id, number))


@router.get("/{number:segment}/logs", response_class=PlainTextResponse, responses=LOG_RESPONSES)
def logs(
    sweep_id: SweepId,
    number: TrialNumber,
    store: StoreHeld,
    storage: StorageHeld,
    is_over: IsOver,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31, description="the last one by default")] = None,
    after: Annotated[
        int, Query(ge=0, lt=2**63, description="leave out so many bytes; name the attempt with it")
    ] = 0,
    follow: Annotated[bool, Query(description="go on with what is logged from now on")] = False,
) -> Response:
    """What an attempt has logged so far; with `follow` also what it will, until it has ended.

    A stream that ends may have been cut off: ask again, `after` what came. 204 says that this was all.
    """
    trial = store.trial(sweep_id, number)
    log = AttemptLog(store, storage, trial, attempt or trial.attempt)
    return log.followed(after, is_over) if follow else log.so_far(after)


@router.get("/{number:segment}/checkpoint", response_class=Response, responses=artifacts.CHECKPOINT_RESPONSES)
def checkpoint(
    sweep_id: SweepId, number: TrialNumber, store: StoreHeld, storage: StorageHeld, request: Request
) -> Response:
    """The trial's checkpoint, a tar."""
    return artifacts.checkpoint_response(storage, store.trial(sweep_id, number), request.headers)
