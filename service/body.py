"""What did a request send? Its body, of a media type that is read and of a size that is taken."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import Depends, HTTPException, Request

__all__ = ["MAX_BODY_BYTES", "Body", "Sent", "described"]

MAX_BODY_BYTES = 1024 * 1024
_BODY_SECONDS = 30.0
_MEDIA_TYPES = re.compile(r"application/([\w.-]+\+)?json|(application|text)/(x-)?yaml", re.IGNORECASE)


@dataclass(frozen=True)
class Sent:
    """A document as it arrived, JSON or YAML."""

    text: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


async def _read_body(request: Request) -> Sent:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if not _MEDIA_TYPES.fullmatch(media_type):
        found = f"not as {media_type!r}" if media_type else "and says so in Content-Type"
        raise HTTPException(415, f"a document comes as application/json or application/yaml, {found}")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    text = bytearray()
    try:
        with anyio.fail_after(_BODY_SECONDS):
            async for chunk in request.stream():
                text += chunk
                if len(text) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        detail = f"the body did not come within {_BODY_SECONDS:g} s"
        raise HTTPException(408, detail, {"Connection": "close"}) from None
    return Sent(bytes(text))


Body = Annotated[Sent, Depends(_read_body)]


def _too_large() -> HTTPException:
    detail = f"the body has more than {MAX_BODY_BYTES} bytes; a sweep is a small document"
    return HTTPException(413, detail, {"Connection": "close"})


def described(schema: str, example: Mapping[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is a document of that schema."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
    media = {"application/json": content, "application/yaml": content}
    return {"requestBody": {"required": True, "content": media}}
