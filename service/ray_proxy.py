"""Route: Ray's dashboard, to look at. The service asks for it with Ray's token, which no client sees."""

import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any

import anyio
import httpx2
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from care_sweep.store import Store
from service.problems import RETRY_AFTER, answers
from service.ray_pages import MEDIA_TYPES, is_shown, media_type_of

__all__ = ["RayProxy", "router"]

router = APIRouter(tags=["cluster"])

_MOST_BYTES = 16 * 1024 * 1024  # of an answer: it is held whole, so that one too large is refused and not cut
_MOST_SECONDS = 20.0
_MOST_AT_ONCE = 16
_ADDRESS = re.compile(r"http://(?P<host>[a-z0-9][a-z0-9.-]{0,252}|\[[0-9a-f:.]{2,45}\]):[0-9]{1,5}")
_NO_TLS = SSLContext(PROTOCOL_TLS_CLIENT)  # Ray's dashboard has none, and loading certificates takes 20 ms

_CONTENT: dict[str, Any] = {media_type: {} for media_type in ("text/html", *sorted(MEDIA_TYPES))}
_SHOWN: dict[int | str, dict[str, Any]] = {200: {"description": "as Ray answers", "content": _CONTENT}}


@router.get("/ray", include_in_schema=False)
async def to_its_page() -> Response:
    """Where who leaves out the last slash wants to go."""
    return RedirectResponse("ray/")


@router.get("/ray/{path:path}", response_class=Response, responses=_SHOWN | answers(403, 404, 502, 503, 504))
async def ray_dashboard(path: str, request: Request) -> Response:
    """Ray's dashboard, read only: its page at `/ray/`, and what that reads. All else is not there.

    A browser asks for a name, which may be any, and a password, which is an admin's token.
    """
    raw_path = request.scope.get("raw_path", b"").decode("ascii", "replace")
    query = request.query_params.multi_items()
    if raw_path != f"/ray/{path}" or not is_shown(path, query):
        raise HTTPException(404, f"there is no {request.url.path}; of Ray's dashboard only pages are shown")
    proxy: RayProxy = request.app.state.ray_proxy
    return await proxy.answer(path, query)


class RayProxy:
    """Asks the dashboard of the cluster that a runner told of last."""

    def __init__(self, store: Store, token_path: Path | None) -> None:
        self._store = store
        self._token_path = token_path
        self._num_open = 0

    async def answer(self, path: str, query: Sequence[tuple[str, str]]) -> Response:
        """What the dashboard answers to a path that is shown, stripped of all but its body and type.

        Raises:
            HTTPException: 404, there is none; 502, it answers otherwise than it should; 503, too many ask at
                once, or Ray's token cannot be read; 504, it does not answer in time.
            DatabaseUnavailable: nobody knows where it is.
        """
        if self._num_open >= _MOST_AT_ONCE:
            raise HTTPException(503, "too many ask for Ray's dashboard at once", RETRY_AFTER)
        self._num_open += 1
        try:
            address, headers = await run_in_threadpool(self._where)
            with anyio.fail_after(_MOST_SECONDS):
                return await _ask(f"{address}/{path}", path, query, headers)
        except TimeoutError:
            raise HTTPException(504, f"Ray's dashboard took more than {_MOST_SECONDS:g} s") from None
        except httpx2.HTTPError as error:
            raise HTTPException(502, f"Ray's dashboard cannot be reached: {type(error).__name__}") from error
        finally:
            self._num_open -= 1

    def _where(self) -> tuple[str, dict[str, str]]:
        """Its address, and the headers that it is asked with: nobody else may be given Ray's token."""
        cluster = self._store.cluster()
        if cluster is None or not cluster.is_known:
            raise HTTPException(404, "no runner tells of a Ray cluster at present")
        address = cluster.report.get("dashboard_url")
        if not isinstance(address, str) or not _is_fit(address):
            raise HTTPException(404, "the Ray cluster has no dashboard that can be asked")
        headers = {"Accept-Encoding": "identity", "User-Agent": "care-sweep"}
        if self._token_path is not None:
            try:
                headers["Authorization"] = f"Bearer {self._token_path.read_text().strip()}"
            except OSError as error:
                raise HTTPException(503, f"Ray's token cannot be read: {error.strerror}") from error
        return address, headers


async def _ask(url: str, path: str, query: Sequence[tuple[str, str]], headers: dict[str, str]) -> Response:
    async with (
        httpx2.AsyncClient(trust_env=False, verify=_NO_TLS, timeout=_MOST_SECONDS) as client,
        client.stream("GET", url, params=list(query), headers=headers) as answer,
    ):
        media_type = media_type_of(path, answer.headers.get("content-type", ""))
        if answer.status_code not in (200, 404) or media_type is None:
            raise HTTPException(502, f"Ray's dashboard answered {answer.status_code}, which is not shown")
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise HTTPException(502, f"Ray's dashboard answered more than {_MOST_BYTES} bytes")
    return Response(bytes(body), answer.status_code, media_type=media_type)


def _is_fit(address: str) -> bool:
    """Whether it is the address of a host, and of none that only this machine's cloud or nobody has."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return False
    try:
        ip = ip_address(found["host"].strip("[]"))
    except ValueError:  # a name
        return True
    return not (ip.is_link_local or ip.is_multicast or ip.is_unspecified)
