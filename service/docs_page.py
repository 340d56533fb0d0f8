"""How does a person read the API? On one page made of the OpenAPI document, without a script or a network."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.schema_words import in_words

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .3rem 0; }
summary b { display: inline-block; width: 4.5rem; }
details > :not(summary) { margin-left: 1.2rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td { border-top: 1px solid #8884; padding: .2rem .8rem .2rem 0; vertical-align: top; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: #8882; padding: .6rem; overflow-x: auto; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; frame-ancestors 'none'; style-src 'sha256-{_HASH}'"


@router.get("/")
async def to_docs() -> Response:
    """Where a browser that was given the service's address alone is led."""
    return RedirectResponse("docs")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page."""
    page = "\n".join(_page(request.app.openapi()))
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    yield '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    yield _prose(info["description"])
    yield '<p><a href="openapi.json">openapi.json</a> says the same to a program.</p>'
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).extend(_operation(method, path, operation))
    for tag, lines in by_tag.items():
        yield f"<h2>{escape(tag.capitalize())}</h2>"
        yield from lines
    yield "<h2>Documents and answers</h2><p>A scalar is a number, a string, true or false.</p>"
    for name, schema in document["components"]["schemas"].items():
        yield from _schema(name, schema)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    first, *more = re.split(r"(?<=\.)\s+", operation["description"], maxsplit=1)
    yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {_inline(first)}</summary>"
    yield _prose("".join(more))
    if "security" in operation:
        yield "<p>Off a loopback address this wants a token: <code>Authorization: Bearer cs_...</code></p>"
    parameters = operation.get("parameters", [])
    if parameters:
        yield _table(
            (
                f"{_code(one['name'])} ({one['in']})",
                _type(one["schema"]),
                _inline(one.get("description", "")),
            )
            for one in parameters
        )
    for media in list(operation.get("requestBody", {}).get("content", {}).values())[:1]:
        yield f"<p>Takes {_type(media['schema'])}, in JSON or YAML, as in</p>"
        yield f"<pre>{escape(json.dumps(media['example'], indent=2))}</pre>"
    yield _table(
        (status, _inline(answer["description"]), " or ".join(_contents(answer)))
        for status, answer in sorted(operation["responses"].items())
    )
    yield "</details>"


def _contents(answer: Mapping[str, Any]) -> Iterator[str]:
    for media_type, content in answer.get("content", {}).items():
        schema = content.get("schema", {})
        is_of_a_model = any(key in schema for key in ("$ref", "anyOf"))
        yield _type(schema) if is_of_a_model else _code(media_type)


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}">{escape(name)}</h3>'
    yield _prose(schema.get("description", ""))
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    required = schema.get("required", ())
    yield _table(
        (
            _code(key),
            _type(one),
            _inline(one.get("description", "")),
            "required" if key in required else _code(json.dumps(one.get("default"))),
        )
        for key, one in schema["properties"].items()
    )


def _type(schema: Mapping[str, Any]) -> str:
    return in_words(schema, code=_code, named=lambda name: f'<a href="#{escape(name)}">{escape(name)}</a>')


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _prose(text: str) -> str:
    """The paragraphs of a description."""
    return "".join(f"<p>{_inline(one)}</p>" for one in text.split("\n\n") if one)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
