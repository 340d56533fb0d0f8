"""How a plain document becomes a model, and how its mistakes are told: place, value, remedy."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from care_sweep.errors import InvalidDocument, Problem

__all__ = ["Document", "parse", "pointer", "problems_of", "shorten", "unknown", "unknown_keys"]

_MAX_PROBLEMS = 20  # a person corrects these and sends the document again
_MAX_UNKNOWN_KEYS = 10  # of one mapping
_MAX_CHARACTERS = 400  # of a pointer or a sentence


class Document(BaseModel):
    """A frozen model: a mapping without unknown keys, NaN, infinities, and text or truth values for numbers.

    A validator may raise `PydanticCustomError` with `key` in its context to point at one key of the document,
    or with `problems` (a list of `Problem`, pointers relative to the document) to report several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping_of_known_keys(cls, document: Any) -> Any:
        if isinstance(document, cls):
            return document
        if not isinstance(document, Mapping):
            keys = ", ".join(cls.model_fields)
            raise PydanticCustomError("no_mapping", "must be a mapping with keys of {keys}", {"keys": keys})
        strangers = [str(key) for key in document if key not in cls.model_fields]
        if strangers:
            context = {"keys": strangers, "known": list(cls.model_fields)}
            raise PydanticCustomError("unknown_keys", "unknown key", context)
        return document


_M = TypeVar("_M", bound=BaseModel)


def parse(model: type[_M], document: Any) -> _M:
    """The document as a model.

    Raises:
        InvalidDocument: with each problem's JSON pointer, the value received and what would work; of many
            problems the first, and how many more there are.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = list(problems_of(error, document))
    told = [Problem(_cut(one.pointer), _cut(one.detail), one.value) for one in problems[:_MAX_PROBLEMS]]
    if len(problems) > len(told):
        told.append(Problem("", f"and {len(problems) - len(told)} more problems; correct these first"))
    raise InvalidDocument(told)


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def problems_of(error: ValidationError, document: Any) -> Iterator[Problem]:
    """Each problem of a document; of the unknown keys of one mapping the first."""
    located = [
        (*_locate(document, details["loc"], missing=details["type"] == "missing"), details)
        for details in error.errors(include_url=False)
    ]
    for path, group in groupby(located, key=lambda one: one[0]):
        place = pointer(*path)
        sentences = []  # several where the value may be one of several things, and is none
        for _, value, details in group:
            if _is_structured(details):
                yield from _structured(place, value, details)
            else:
                sentences.append(_sentence(details["msg"]))
                shown = None if details["type"] == "missing" else shorten(value)
        if sentences:
            yield Problem(place, _either(sentences), shown)


def _is_structured(details: ErrorDetails) -> bool:
    return details["type"].startswith(("union_tag", "unknown_keys", "problems")) or "key" in details.get(
        "ctx", {}
    )


def _structured(place: str, value: Any, details: ErrorDetails) -> Iterator[Problem]:
    """The problems of an error that says more than a sentence about its own place."""
    context: dict[str, Any] = details.get("ctx", {})
    if details["type"] == "unknown_keys":
        yield from unknown_keys(context["keys"], context["known"], place)
    elif details["type"] == "problems":
        for problem in context["problems"]:
            yield Problem(place + problem.pointer, problem.detail, problem.value)
    elif "key" in context:
        yield _at_key(place, value, context["key"], _sentence(details["msg"]))
    else:
        wanted = context.get("expected_tags", "'float', 'int', 'categorical'")
        yield _at_key(place, value, "type", f"must be one of {wanted}")


def _at_key(place: str, value: Any, key: str, sentence: str) -> Problem:
    found = value.get(key) if isinstance(value, Mapping) else None
    return Problem(place + pointer(key), sentence, None if found is None else shorten(found))


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
    """That a name is unknown, and the one that may have been meant, or all."""
    close = difflib.get_close_matches(name[:_MAX_CHARACTERS], known, n=1)
    return "unknown; " + (
        f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
    )


def unknown_keys(names: Sequence[str], known: Sequence[str], place: str = "") -> Iterator[Problem]:
    """The first unknown keys of the mapping at `place`, and how many more it has."""
    for name in names[:_MAX_UNKNOWN_KEYS]:
        yield Problem(place + pointer(name), unknown(name, known))
    if len(names) > _MAX_UNKNOWN_KEYS:
        yield Problem(place, f"and {len(names) - _MAX_UNKNOWN_KEYS} more unknown keys")


def _sentence(message: str) -> str:
    for ours, pydantics in (
        ("", "Value error, "),
        ("", "Input "),
        ("is required", "Field required"),
        ("a mapping", "a valid dictionary or object to extract fields from"),
        ("a mapping", "a valid dictionary"),
    ):
        message = message.replace(pydantics, ours, 1)
    return message


def _either(sentences: Sequence[str]) -> str:
    return " or ".join([sentences[0], *(one.removeprefix("should be ") for one in sentences[1:])])


def shorten(value: Any, limit: int = 80) -> str:
    """A value as the JSON it was, cut; only as much of it is written as is shown."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = ""
    for part in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        text += part
        if len(text) > limit:
            break
    return _cut(text, limit)


def _cut(text: str, limit: int = _MAX_CHARACTERS) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
