"""What do words and files of the command line mean? Sweeps, spaces and values of a trial."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from care_sweep.errors import CareSweepError
from care_sweep.spec import Scalar, SearchSpace, SweepSpec

__all__ = [
    "DEFAULT_NUM_TRIALS",
    "assigned",
    "limits",
    "overridden",
    "read",
    "scalar",
    "space_document",
    "sweep_document",
]

DEFAULT_NUM_TRIALS = 20


def read(path: Path) -> Any:
    """What a file of YAML or JSON holds.

    Raises:
        CareSweepError: it cannot be read.
        InvalidDocument: it is neither.
    """
    from care_sweep.search.catalog import read_document  # noqa: PLC0415

    try:
        return read_document(path.read_bytes())
    except OSError as error:
        raise CareSweepError(
            f"cannot read {path}: {error.strerror}; `care-sweep spaces` lists what needs no file"
        ) from error


def _looks_like_file(what: str) -> bool:
    return Path(what).suffix in (".yaml", ".yml", ".json") or Path(what).is_file()


def sweep_document(what: str) -> dict[str, Any]:
    """A sweep from a file that holds one, or around a space from a file or of that name."""
    content = read(Path(what)) if _looks_like_file(what) else what
    if isinstance(content, Mapping) and _likeness(content, SearchSpace) <= _likeness(content, SweepSpec):
        return {"num_trials": DEFAULT_NUM_TRIALS, **content}
    named = (
        content if isinstance(content, str) else content.get("name") if isinstance(content, Mapping) else None
    )
    return {"name": named or Path(what).stem, "space": content, "num_trials": DEFAULT_NUM_TRIALS}


def _likeness(content: Mapping[str, Any], model: type[SearchSpace | SweepSpec]) -> int:
    """How many of its keys are a model's, or nearly: one mistyped key makes no other document of it."""
    return sum(bool(get_close_matches(key, model.model_fields)) for key in content)


def space_document(what: str) -> Any:
    """A space from a file that holds one or a sweep around one, or the one of that name."""
    from care_sweep.search.catalog import load_space  # noqa: PLC0415

    if not _looks_like_file(what):
        return load_space(what).model_dump(mode="json")
    content = read(Path(what))
    if isinstance(content, Mapping) and "space" in content:
        content = content["space"]
    return load_space(content).model_dump(mode="json") if isinstance(content, str) else content


def overridden(document: Any, options: Mapping[str, Any]) -> Any:
    """The document with those options that were given, which are not None; a mapping of options goes into
    the mapping of that name, where null counts as an empty one.

    What is no mapping stays as it is: whoever parses the document tells its place and what would work.
    """
    if not isinstance(document, Mapping):
        return document
    changed = dict(document)
    for key, option in options.items():
        if not isinstance(option, Mapping):
            changed |= {} if option is None else {key: option}
        elif any(value is not None for value in option.values()):
            held = document.get(key)
            changed[key] = overridden({} if held is None else held, option)
    return changed


def assigned(assignments: list[str], *, given_as: str) -> dict[str, Scalar]:
    """The values that words such as `epochs=3` give; `given_as` names the option or argument they are of.

    Raises:
        BadParameter: a word is not KEY=VALUE.
    """
    pairs = [assignment.partition("=") for assignment in assignments]
    wrong = [name for name, separator, _ in pairs if not separator or not name]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE", param_hint=given_as)
    return {name: scalar(text) for name, _, text in pairs}


def limits(options: Mapping[str, str | None]) -> dict[str, float | None]:
    """The limits that options of these names were given, None for the word `none`, which takes one away.

    Raises:
        BadParameter: one was given neither a number nor `none`.
    """
    found: dict[str, float | None] = {}
    for name, text in options.items():
        if text is not None:
            value = None if text == "none" else scalar(text)
            if isinstance(value, bool | str):
                option = "--" + name.replace("_", "-")
                raise typer.BadParameter(f"{text!r} is neither a number nor none", param_hint=option)
            found[name] = value
    return found


def scalar(text: str) -> Scalar:
    """A word of the command line as JSON would have it, else a string."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
