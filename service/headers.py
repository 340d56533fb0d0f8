"""What does every answer tell a browser? That it is data, which it may neither run nor frame nor keep."""

import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SECURITY_HEADERS", "SecurityHeaders"]

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_POLICY = "Content-Security-Policy"
_RAY = "/ray/"
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?")


def _ray_policy(host: str) -> str:
    """Of Ray's dashboard: its own scripts run, and reach nothing of ours but what lies below `/ray/`.

    So a hole in its pages, which show names and logs of trials, commands no sweep. A name of the host that a
    policy cannot hold, as an address of IPv6, leaves out the path.
    """
    own = f"{host}{_RAY}" if _HOST.fullmatch(host) else "'self'"
    return (
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
        f"connect-src {own}; script-src {own}; style-src {own} 'unsafe-inline'; "
        f"img-src {own} data:; font-src {own} data:"
    )


class SecurityHeaders:
    """Middleware that sets them; a page of ours may have a policy of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                policy = headers.get(_POLICY, SECURITY_HEADERS[_POLICY])
                if scope["path"].startswith(_RAY):
                    policy = _ray_policy(Headers(scope=scope).get("host", ""))
                headers.update({**SECURITY_HEADERS, _POLICY: policy})
            await send(message)

        await self._app(scope, receive, send_with_headers)
