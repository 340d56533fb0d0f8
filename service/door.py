"""Who is turned away before a route is looked for? Who asks too often, by a foreign name or for another page.

It is middleware, so that it covers what no route answers as well: unknown paths, and what tells of the API.
"""

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import count
from service.origin import refuse_foreign_requests
from service.problems import refusal

__all__ = ["Door"]


class Door:
    """Middleware that answers 403, 421 and 429 itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                count(request)
                refuse_foreign_requests(request)
            except HTTPException as error:
                await refusal(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
