"""Which search spaces have a name, and what does a document that a user wrote say?"""

import json
import re
from collections.abc import Hashable, Mapping
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from care_sweep.documents import parse, pointer, shorten, unknown
from care_sweep.errors import InvalidDocument, NotFound, Problem
from care_sweep.spec import SearchSpace, SweepSpec

__all__ = ["load_space", "read_document", "resolve_sweep", "space_names"]

_MAX_YAML_BYTES = 256 * 1024  # the YAML reader is written in Python: about 10 s a megabyte
_MAX_JSON_BYTES = 1024 * 1024
_MAX_DEPTH = 32  # of what a sweep nests there are 6


def space_names() -> list[str]:
    """The names of the search spaces that this installation ships, sorted."""
    return sorted(_space_files())


def load_space(name: str) -> SearchSpace:
    """The search space of that name.

    Raises:
        NotFound: there is none; the message names a close one or all.
    """
    found = _space_files()
    if name not in found:
        raise NotFound(f"search space {shorten(name)}: {unknown(name, sorted(found))}")
    return _space(found[name].read_bytes())


def resolve_sweep(document: Any) -> SweepSpec:
    """The sweep that a plain document asks for; its `space` may be the name of a search space.

    Raises:
        InvalidDocument: every problem with its place; a name that is unknown at `/space`.
    """
    if isinstance(document, Mapping) and isinstance(document.get("space"), str):
        name = document["space"]
        try:
            document = {**document, "space": load_space(name)}
        except NotFound:
            problem = Problem(pointer("space"), unknown(name, space_names()), shorten(name))
            raise InvalidDocument([problem]) from None
    return parse(SweepSpec, document)


def read_document(text: bytes | str) -> Any:
    """JSON or YAML text as a plain document: dict, list, str, int, float, bool and None.

    Text that begins with a brace or a bracket is read as JSON of at most 1 MiB. Where it is none, and all
    other text, is YAML of at most 256 KiB with the plain words of YAML 1.2 (core schema): `1e-3` is a number,
    `no` and `2026-01-01` are strings.

    Raises:
        InvalidDocument: too large or too deep, empty, not UTF-8, malformed, a key that stands twice or is no
            string, an anchor, alias or tag; with line and column.
    """
    text = _decode(text)
    if not text.strip():
        raise _refusal("is empty")
    may_be_json = text.lstrip()[0] in "{["
    size_bytes = len(text.encode(errors="surrogatepass"))
    limit = _MAX_JSON_BYTES if may_be_json else _MAX_YAML_BYTES
    if size_bytes > limit:
        raise _refusal(f"is {size_bytes} bytes long; at most {limit} are read")
    try:
        document = _read_json_or_yaml(text, size_bytes) if may_be_json else _read_yaml(text)
        if _is_deeper_than(_MAX_DEPTH, document):
            raise RecursionError
        json.dumps(document, ensure_ascii=False).encode()
    except _MisreadError as error:
        raise _refusal(error.detail, *error.place) from None
    except RecursionError:
        raise _refusal(f"is nested too deeply; at most {_MAX_DEPTH} levels are read") from None
    except UnicodeEncodeError:
        raise _refusal("holds half of a surrogate pair, which is no character") from None
    return document


def _is_deeper_than(limit: int, document: Any) -> bool:
    level = [document]
    for _ in range(limit):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, dict | list) for one in level)


@lru_cache(maxsize=64)
def _space(text: bytes) -> SearchSpace:
    """Remembered, for a submission that names a space would spend half its time on reading YAML."""
    return parse(SearchSpace, read_document(text))


def _space_files() -> dict[str, Traversable]:
    found = files("search_spaces").iterdir()
    return {file.name.removesuffix(".yaml"): file for file in found if file.name.endswith(".yaml")}


def _decode(text: bytes | str) -> str:
    try:
        return text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise _refusal("is not UTF-8", line, column) from None


def _refusal(detail: str, line: int = 0, column: int = 0) -> InvalidDocument:
    """A problem with the whole document; lines and columns count from 1, and are 0 where they are unknown."""
    place = f"line {line}, column {column}: " if line else ""
    return InvalidDocument([Problem("", place + detail)])


class _MisreadError(ValueError):
    """A text that is not of the language it was read as, and where it leaves it, as in `_refusal`."""

    def __init__(self, detail: str, line: int = 0, column: int = 0) -> None:
        self.detail, self.place = detail, (line, column)
        super().__init__(detail)


def _read_json_or_yaml(text: str, size_bytes: int) -> Any:
    """A mistake is told by the reader that came further.

    But for a missing comma and a second document: there YAML reads on, or says it in words that few know.
    """
    try:
        return _read_json(text)
    except _MisreadError as error:
        of_json = error
    if size_bytes > _MAX_YAML_BYTES:
        raise of_json
    try:
        return _read_yaml(text)
    except _MisreadError as of_yaml:
        if of_json.detail in ("Expecting ',' delimiter", "Extra data"):
            raise of_json from None
        raise max(of_yaml, of_json, key=lambda one: one.place) from None


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _MisreadError(error.msg, error.lineno, error.colno) from None
    except ValueError as error:  # a key stands twice, or a number is too long
        raise _MisreadError(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key stands twice")
    return document


def _read_yaml(text: str) -> Any:
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506  (a SafeLoader that takes less)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        detail = ": ".join(filter(None, (error.context, error.problem)))
        raise _MisreadError(detail, mark.line + 1, mark.column + 1) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - before.rfind("\n")
        detail = f"the character U+{ord(text[error.position]):04X} is not allowed"
        raise _MisreadError(detail, before.count("\n") + 1, column) from None


class _PlainLoader(yaml.SafeLoader):
    """YAML with the values of JSON: no anchor, alias, tag or merge, and each key once, a string."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (filled below, instead of YAML 1.1's)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call] # types-PyYAML leaves it bare
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _mistake("anchors and aliases are not allowed; write the value out", event.start_mark)
        if event.tag is not None:
            raise _mistake(f"the tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _mistake("a key must be a string; put it in quotes", key.start_mark)
            if key.value in seen:
                raise _mistake(f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value.lower().replace(".inf", "inf").replace(".nan", "nan")
        try:
            return int(text) if node.tag.endswith("int") else float(text)
        except ValueError:  # Python reads no integer of more than 4,300 digits
            raise _mistake("the number is too long", node.start_mark) from None


def _mistake(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _teach_core_schema() -> None:
    """YAML 1.2, section 10.3.2, but for octal and hexadecimal numbers."""
    for word, pattern, first in (
        ("null", r"null|Null|NULL|~|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+", list("-+0123456789")),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ):
        _PlainLoader.add_implicit_resolver(
            f"tag:yaml.org,2002:{word}", re.compile(rf"^(?:{pattern})$"), first
        )
    for word in ("int", "float"):
        _PlainLoader.add_constructor(f"tag:yaml.org,2002:{word}", _PlainLoader.construct_number)


_teach_core_schema()
