"""Routes: what a user may want of a sweep that is there, and of one of its trials."""

import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Response

from care_sweep.documents import parse, pointer
from care_sweep.errors import InvalidDocument, Problem
from care_sweep.layout import discard_all, discard_training_states, sweep_prefix
from care_sweep.search.catalog import read_document
from care_sweep.search.space import distributions
from care_sweep.spec import SearchSpace, SweepSpec
from care_sweep.storage import Storage
from care_sweep.store import SweepRecord
from service.body import Body, described
from service.problems import answers
from service.request import IdempotencyKey, StorageHeld, StoreHeld, SweepId, TrialNumber
from service.schemas import EnqueuedPoint, Sweep, SweepChange

__all__ = ["router"]

router = APIRouter(prefix="/v1/sweeps/{sweep_id:segment}", tags=["control"])

_IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", description="the ETag of the sweep as you read it; 412 if it has changed"),
]
_SOON = {
    202: {"model": Sweep, "description": "its driver will see to it"},
    **answers(403, 404, 409, 503, 507),
}


@router.post(":pause", responses=_SOON)
def pause(sweep_id: SweepId, store: StoreHeld, response: Response) -> Sweep:
    """Start nothing more; running trials stop after their epoch, are resumed from there, and hold nothing."""
    return _answer(store.control.pause(sweep_id), response)


@router.post(":resume", responses=_SOON)
def resume(sweep_id: SweepId, store: StoreHeld, response: Response) -> Sweep:
    """Take a paused sweep up again; it waits for a runner first."""
    return _answer(store.control.resume(sweep_id), response)


@router.post(":stop", responses=_SOON)
def stop(sweep_id: SweepId, store: StoreHeld, storage: StorageHeld, response: Response) -> Sweep:
    """Begin no new trial, let those that have begun end, and succeed with what is there."""
    return _ended(store.control.stop(sweep_id), storage, response)


@router.post(":cancel", responses=_SOON)
def cancel(sweep_id: SweepId, store: StoreHeld, storage: StorageHeld, response: Response) -> Sweep:
    """End a sweep: a waiting one at once (200), a running one once its runner has stopped it (202)."""
    return _ended(store.control.cancel(sweep_id), storage, response)


@router.patch(
    "",
    responses={**_SOON, **answers(408, 412, 413, 415, 422)},
    openapi_extra=described("SweepChange", {"num_trials": 80}),
)
def change(
    sweep_id: SweepId, body: Body, store: StoreHeld, response: Response, if_match: _IfMatch = None
) -> Sweep:
    """Change what a sweep may run and spend; one that succeeded or failed goes on, with all it has learnt."""
    wanted = parse(SweepChange, read_document(body.text))
    changes = {name: value for name, value in wanted.model_dump().items() if name in wanted.model_fields_set}
    if not changes:
        raise InvalidDocument([Problem("", f"changes nothing; give {', '.join(SweepChange.model_fields)}")])

    def revise(spec: SweepSpec) -> SweepSpec:
        return parse(SweepSpec, {**spec.model_dump(), **changes})

    return _answer(store.control.extend(sweep_id, revise, revision=_revision(if_match)), response)


@router.delete("", status_code=204, response_class=Response, responses=answers(403, 404, 409, 503, 507))
def delete(sweep_id: SweepId, store: StoreHeld, storage: StorageHeld) -> None:
    """Delete an ended sweep with its trials, checkpoints and logs."""
    store.control.delete(sweep_id)
    discard_all(storage, sweep_id)


@router.post(
    "/trials",
    status_code=202,
    responses=answers(403, 404, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=described("EnqueuedPoint", {"parameters": {"temperature": 0.2}}),
)
def enqueue(
    sweep_id: SweepId,
    body: Body,
    store: StoreHeld,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Sweep:
    """Have a configuration tried before what the search suggests; it takes one of `num_trials`.

    The answer's `enqueued` has it, until its trial begins.
    """
    point = parse(EnqueuedPoint, read_document(body.text))
    values = _inside(store.sweep(sweep_id).spec.space, point)
    asked = hashlib.sha256(f"{sweep_id} {body.sha256}".encode()).hexdigest()
    record = store.control.enqueue(sweep_id, values, idempotency_key=idempotency_key, request_sha256=asked)
    return Sweep.tagged(record, response)


@router.post("/trials/{number:segment}:stop", status_code=202, responses=answers(403, 404, 409, 503, 507))
def stop_trial(sweep_id: SweepId, number: TrialNumber, store: StoreHeld, response: Response) -> Sweep:
    """Cancel one open trial; a running one stops after its epoch."""
    return Sweep.tagged(store.control.stop_trial(sweep_id, number), response)


def _ended(record: SweepRecord, storage: Storage, response: Response) -> Sweep:
    """Where nobody drove it, nobody else deletes what its trials would have gone on from."""
    if record.state.is_terminal:
        discard_training_states(storage, sweep_prefix(record.id))
    return _answer(record, response)


def _answer(record: SweepRecord, response: Response) -> Sweep:
    """202 while a driver still has to act, as for a paused sweep whose trials have not stopped yet."""
    is_held = record.lease_owner is not None and not record.state.is_terminal
    response.status_code = 202 if is_held else 200
    return Sweep.tagged(record, response)


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    found = re.fullmatch(r'"(\d{1,9})"', if_match.strip())
    if found is None:
        raise HTTPException(412, f"If-Match {if_match[:100]!r} is no ETag of a sweep; read the sweep again")
    return int(found[1])


def _inside(space: SearchSpace, point: EnqueuedPoint) -> dict[str, bool | int | float | str]:
    """The point with its defaults.

    Raises:
        InvalidDocument: it does not lie in the space, or makes no configuration.
    """
    values = space.baseline_values(point.parameters)
    try:
        distributions(space, values)
        space.trial_config(values)
    except InvalidDocument as error:
        problems = [Problem(pointer("parameters") + p.pointer, p.detail, p.value) for p in error.problems]
        raise InvalidDocument(problems) from None
    return values
