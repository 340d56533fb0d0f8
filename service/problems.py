"""How does an error become an answer? RFC 9457 problems, for every error and on every route."""

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from care_sweep.documents import pointer, shorten
from care_sweep.errors import (
    CareSweepError,
    CheckpointError,
    Conflict,
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseError,
    DatabaseFull,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InvalidDocument,
    NotFound,
    Problem,
    QuotaExceeded,
    RequestUnderWay,
    RevisionMismatch,
    StorageError,
)
from care_sweep.store.trouble import in_words
from service.headers import SECURITY_HEADERS

__all__ = ["MEDIA_TYPE", "RETRY_AFTER", "ProblemDocument", "answers", "install", "refusal"]

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER: Mapping[str, str] = {"Retry-After": "5"}
"""The header of refusals that may pass, in seconds."""
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class ProblemPlace(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(
        description="JSON pointer into the document sent, or /query/NAME, /path/NAME, /header/NAME"
    )
    detail: str
    value: str | None = Field(None, description="what stood there, shortened")


class ProblemDocument(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(examples=["urn:care-sweep:problem:invalid-document"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="the path of the request")
    problems: list[ProblemPlace] = []


_KINDS: Mapping[type[CareSweepError], tuple[int, str]] = {
    InvalidDocument: (422, "Invalid document"),
    NotFound: (404, "Not found"),
    Conflict: (409, "Conflict"),
    RequestUnderWay: (409, "Request under way"),
    QuotaExceeded: (403, "Quota exceeded"),
    RevisionMismatch: (412, "Precondition failed"),
    IdempotencyKeyReused: (422, "Idempotency key reused"),
    CheckpointError: (500, "Checkpoint damaged"),  # the service's loss, whatever the request says
    DatabaseError: (503, "Database out of reach"),
    DatabaseDamaged: (500, "Database damaged"),
    DatabaseUnavailable: (503, "Database out of reach"),
    DatabaseBusy: (503, "Database busy"),
    DatabaseFull: (507, "Database full"),
    StorageError: (503, "Storage out of reach"),
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may be refused with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Have every error that leaves a route, and every one that finds none, answered as a problem."""
    app.exception_handler(CareSweepError)(_refused)
    app.exception_handler(RequestValidationError)(_malformed)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(OSError)(_disk)
    app.exception_handler(Exception)(_unforeseen)


async def _refused(request: Request, error: CareSweepError) -> Response:
    status, title = _KINDS.get(type(error), (500, "Internal error"))
    if status >= 500:
        why = f"{error}: {in_words(error)}" if isinstance(error, DatabaseUnavailable) else str(error)
        _log.error("%s %s: %s", request.method, request.url.path, why)
    may_pass = status in (503, 507) or isinstance(error, RequestUnderWay)
    headers = RETRY_AFTER if may_pass else {}
    if isinstance(error, InvalidDocument):
        number = len(error.problems)
        detail = str(error.problems[0]) if number == 1 else f"the document has {number} problems"
        return _answer(request, status, title, detail, error.problems, headers)
    return _answer(request, status, title, str(error), (), headers)


async def _malformed(request: Request, error: RequestValidationError) -> Response:
    """A parameter of the request that cannot be read. What no path can name is not there: 404."""
    problems = [
        Problem(pointer(*found["loc"]), found["msg"].removeprefix("Input "), shorten(found["input"]))
        for found in error.errors()
    ]
    if any(found["loc"][0] == "path" for found in error.errors()):
        return _answer(request, 404, "Not found", f"there is no {request.url.path}", problems)
    return _answer(request, 422, "Invalid parameter", "; ".join(map(str, problems)), problems)


async def _http(request: Request, error: HTTPException) -> Response:
    return refusal(request, error)


def refusal(request: Request, error: HTTPException) -> Response:
    """The answer to a request that was refused with this error."""
    phrase = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if detail == phrase and error.status_code == 404:
        detail = f"there is no {request.url.path}; /openapi.json lists what there is"
    elif detail == phrase and error.status_code == 405:
        allowed = ", ".join(_methods(request))
        detail = f"{request.method} is not for {request.url.path}; use {allowed}"
        return _answer(request, error.status_code, phrase.capitalize(), detail, (), {"Allow": allowed})
    return _answer(request, error.status_code, phrase.capitalize(), detail, (), error.headers)


def _methods(request: Request) -> Sequence[str]:
    """Those of all routes of the path: the framework names the first one's."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if is_taken(method)]


async def _disk(request: Request, error: Exception) -> Response:
    """A disk that is full; any other error of the system is a bug of ours."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        raise error
    _log.error("%s %s: %s", request.method, request.url.path, error)
    return _answer(request, 507, "Disk full", "a disk of the service is full: free space", (), RETRY_AFTER)


async def _unforeseen(request: Request, _: Exception) -> Response:
    """A bug of ours; Starlette logs its traceback once this is sent, past the middleware."""
    return _answer(request, 500, "Internal error", "a bug in care-sweep; the log of the service has more")


def _answer(
    request: Request,
    status: int,
    title: str,
    detail: str,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    document = {
        "type": "urn:care-sweep:problem:" + title.lower().replace(" ", "-"),
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "problems": [problem.to_json() for problem in problems],
    }
    # A refused document may hold half a surrogate pair, which UTF-8 cannot write.
    content = json.dumps(document, ensure_ascii=False).encode(errors="replace")
    return Response(content, status, {**SECURITY_HEADERS, **(headers or {})}, MEDIA_TYPE)
