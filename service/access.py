"""Who asks, and may they? Each request is of a token's owner, within its scope and its rate.

Where no token is required, which is on a loopback address alone, everybody is one owner who may do all.
"""

import logging
import math
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated, NoReturn

from fastapi import Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.http import HTTPBase

from care_sweep.store import Caller, Scope, Tokens
from care_sweep.store.schema import LOCAL_OWNER
from service.origin import READS
from service.rate import RateLimiter

__all__ = [
    "Access",
    "CallerHeld",
    "IsOver",
    "authenticate",
    "authenticate_browser",
    "authenticate_watcher",
    "count",
]

_REMEMBERED_SECONDS = 2.0
"""So long is a token not looked up again, and so long at most does a revoked one still open."""

_BURST_SECONDS = 10.0  # so many seconds' requests may come at once
_WANTED = (
    "this service wants a token, as in `Authorization: Bearer cs_...`: client and command line send the one "
    "in CARE_SWEEP_TOKEN, and `care-sweep token create` where the service runs makes one"
)
_REFUSED = "the token is unknown, has expired or was revoked; `care-sweep token create` makes a new one"
_ASKED_IN_A_BROWSER = 'Basic realm="care-sweep: any name in ASCII, and the token as the password"'
_EVERYBODY = Caller(LOCAL_OWNER, Scope.ADMIN)
_log = logging.getLogger(__name__)


class Access:
    """The tokens of a service. Used from its event loop, which never waits for the database in here."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        is_required: bool,
        requests_per_second: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_required = is_required
        self._tokens = tokens
        self._monotonic = monotonic
        self._remembered: dict[str, tuple[Caller, float]] = {}
        burst = max(1.0, requests_per_second * _BURST_SECONDS)
        self._limiter = RateLimiter(requests_per_second, burst=burst, monotonic=monotonic)

    def count(self, token: str | None, peer: str) -> None:
        """Count a request from this address, with this token or without one, before anything is looked up.

        One with a token that was good before counts for that token, any other one for its address: a token
        does not suffer for others at its address, which may be a proxy's.

        Raises:
            HTTPException: 429, it comes too soon.
        """
        if not self.is_required:
            return
        caller, _ = self._remembered.get(token or "", (None, 0.0))
        delay = self._limiter.take(peer if caller is None else f"token {caller.token_id}")
        if delay > 0:
            seconds = math.ceil(delay)
            detail = f"too many requests; try again in {seconds} s"
            raise HTTPException(429, detail, {"Retry-After": str(seconds)})

    async def admit(self, token: str | None) -> Caller:
        """Who sends a request with this token, or without one.

        Raises:
            HTTPException: 401, it is nobody's.
            DatabaseUnavailable: nobody knows at present.
        """
        if not self.is_required:
            return _EVERYBODY
        caller = None if token is None else self._known(token) or await self._look_up(token)
        if caller is None:
            challenge = "Bearer" if token is None else 'Bearer error="invalid_token"'
            raise HTTPException(401, _REFUSED if token else _WANTED, {"WWW-Authenticate": challenge})
        return caller

    async def still_opens(self, token: str | None) -> bool:
        """Whether a token that opened something would open it still."""
        if not self.is_required:
            return True
        return token is not None and (self._known(token) or await self._look_up(token)) is not None

    def _known(self, token: str) -> Caller | None:
        caller, looked_up_at = self._remembered.get(token, (None, 0.0))
        return caller if self._monotonic() - looked_up_at < _REMEMBERED_SECONDS else None

    async def _look_up(self, token: str) -> Caller | None:
        asked_at = self._monotonic()
        caller = await run_in_threadpool(self._tokens.caller, token)
        if caller is None:
            self._remembered.pop(token, None)
        else:
            self._remembered[token] = (caller, asked_at)
        return caller


def count(request: Request) -> None:
    """Hold whoever sends a request to a rate. Raises HTTPException 429."""
    access: Access = request.app.state.access
    access.count(_token_shown(request), _peer(request))


def _token_shown(request: Request) -> str | None:
    """The token that a request shows, as itself or as the password of a browser."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return shown.strip() or None
    if scheme.lower() != "basic":
        return None
    try:
        return b64decode(shown, validate=True).decode("ascii").partition(":")[2] or None
    except ValueError:  # it is not base64, or not of ASCII
        return None


_bearer = HTTPBearer(auto_error=False, description="what `care-sweep token create` printed")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def _token_of(credentials: HTTPAuthorizationCredentials | None) -> str | None:
    return None if credentials is None else credentials.credentials


async def authenticate(request: Request, credentials: _Credentials) -> Caller:
    """A dependency: who asks. A request that changes something needs the scope `submit`.

    Raises:
        HTTPException: 401 or 403.
        DatabaseUnavailable: nobody knows at present.
    """
    wanted = Scope.READ if request.method in READS else Scope.SUBMIT
    return await _admitted(request, _token_of(credentials), wanted)


CallerHeld = Annotated[Caller, Depends(authenticate)]


async def authenticate_watcher(request: Request, credentials: _Credentials) -> Caller:
    """A dependency: who asks for the figures of the whole installation. Raises as `authenticate`."""
    return await _admitted(request, _token_of(credentials), Scope.METRICS)


# Not HTTPBasic, which answers what it cannot read by itself, in other words and past the log.
_basic = HTTPBase(
    scheme="basic",
    scheme_name="HTTPBasic",
    description="any name, and an admin's token as the password",
    auto_error=False,
)


async def authenticate_browser(
    request: Request,
    _: _Credentials,
    __: Annotated[HTTPAuthorizationCredentials | None, Depends(_basic)],
) -> Caller:
    """A dependency of what an admin looks at in a browser, which can send a token as a password alone.

    Raises as `authenticate`.
    """
    return await _admitted(request, _token_shown(request), Scope.ADMIN, _ASKED_IN_A_BROWSER)


async def _admitted(
    request: Request, token: str | None, wanted: Scope, challenge: str | None = None
) -> Caller:
    """Who asks, if it may; who is not known is challenged, as for a token unless told otherwise."""
    access: Access = request.app.state.access
    try:
        caller = await access.admit(token)
    except HTTPException as error:
        if error.status_code == 401:
            _log.warning("refused 401: %s %s, from %s", request.method, request.url.path, _peer(request))
            if challenge is not None:
                error.headers = {"WWW-Authenticate": challenge}
        raise
    if not caller.scope.includes(wanted):
        _refuse(request, caller, wanted)
    return caller


def _refuse(request: Request, caller: Caller, wanted: Scope) -> NoReturn:
    who = f"{caller.owner} (token {caller.token_id})"
    _log.warning("refused 403: %s %s, by %s", request.method, request.url.path, who)
    detail = f"the scope of this token is {caller.scope}, and this needs {wanted}"
    challenge = f'Bearer error="insufficient_scope", scope="{wanted}"'
    raise HTTPException(403, detail, {"WWW-Authenticate": challenge})


async def _is_over(request: Request, credentials: _Credentials) -> Callable[[], Awaitable[bool]]:
    access: Access = request.app.state.access
    token = _token_of(credentials)

    async def is_over() -> bool:
        return request.app.state.closing.is_set() or not await access.still_opens(token)

    return is_over


IsOver = Annotated[Callable[[], Awaitable[bool]], Depends(_is_over)]
"""Asked by what would stream for ever: whether the process is told to end, or the token opens no more."""


def _peer(request: Request) -> str:
    """The address of the other end; of IPv6 the network, for a host there has 2^64 addresses."""
    host = "unknown" if request.client is None else request.client.host
    try:
        address = ip_address(host)
    except ValueError:  # a socket of another kind, or a test's
        return host
    return str(IPv6Network((address, 64), strict=False)) if isinstance(address, IPv6Address) else host
