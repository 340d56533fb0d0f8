"""How a plain document becomes a model, and how its mistakes are told: place, value, remedy."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from care_sweep.errors import InvalidDocument, Problem

__all__ = ["Document", "parse", "pointer", "problems_of", "shorten", "unknown"]


class Document(BaseModel):
    """A frozen model that refuses unknown keys, NaN, infinities, and text or truth values for numbers.

    A validator may raise `PydanticCustomError` with `key` in its context to point at one key of the document,
    or with `problems` (a list of `Problem`, pointers relative to the document) to report several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, document: Any) -> Any:
        if isinstance(document, Mapping):
            strangers = [str(key) for key in document if key not in cls.model_fields]
            if strangers:
                context = {"keys": strangers, "known": list(cls.model_fields)}
                raise PydanticCustomError("unknown_keys", "unknown key", context)
        return document


_M = TypeVar("_M", bound=BaseModel)


def parse(model: type[_M], document: Any) -> _M:
    """The document as a model.

    Raises:
        InvalidDocument: with every problem's JSON pointer, the value received and what would work.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidDocument(list(problems_of(error, document))) from None


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def problems_of(error: ValidationError, document: Any) -> Iterator[Problem]:
    for details in error.errors(include_url=False):
        context: dict[str, Any] = details.get("ctx", {})
        path, value = _locate(document, details["loc"], missing=details["type"] == "missing")
        place = pointer(*path)
        if details["type"].startswith("union_tag"):
            found = value.get("type") if isinstance(value, Mapping) else None
            wanted = context.get("expected_tags", "'float', 'int', 'categorical'")
            yield Problem(
                place + "/type", f"must be one of {wanted}", None if found is None else shorten(found)
            )
        elif details["type"] == "unknown_keys":
            for key in context["keys"]:
                yield Problem(place + pointer(key), unknown(key, context["known"]))
        elif details["type"] == "problems":
            for problem in context["problems"]:
                yield Problem(place + problem.pointer, problem.detail, problem.value)
        elif "key" in context:
            found = value.get(context["key"]) if isinstance(value, Mapping) else None
            shown = None if found is None else shorten(found)
            yield Problem(place + pointer(context["key"]), _sentence(details["msg"]), shown)
        else:
            found = None if details["type"] == "missing" else shorten(value)
            yield Problem(place, _sentence(details["msg"]), found)


def _locate(document: Any, location: Sequence[str | int], *, missing: bool) -> tuple[list[str | int], Any]:
    """The path of `location` in the document, without pydantic's union tags, and what stands there."""
    path: list[str | int] = []
    here = document
    for index, part in enumerate(location):
        leads_on = (
            part in here if isinstance(here, Mapping) else isinstance(here, list) and isinstance(part, int)
        )
        if leads_on:
            here = here[part]
        elif missing and index == len(location) - 1:
            here = None
        else:
            continue
        path.append(part)
    return path, here


def unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return "unknown; " + (f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}")


def _sentence(message: str) -> str:
    return (
        message.removeprefix("Value error, ").removeprefix("Input ").replace("Field required", "is required")
    )


def shorten(value: Any, limit: int = 80) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
