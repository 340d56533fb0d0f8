"""Writes docs/reference.md: every setting, document, endpoint and command, from the program itself.

    python docs/make_reference.py

`tests/test_reference.py` fails where the file is not what this would write.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sqlalchemy import create_engine

from care_sweep.cli import app
from care_sweep.settings import Settings
from care_sweep.spec import (
    Budget,
    CategoricalParameter,
    EarlyStopping,
    FloatParameter,
    IntParameter,
    Resources,
    SearchSpace,
    SweepSpec,
    TrialConfig,
)
from care_sweep.store import Store
from service.app import create_app
from service.schema_words import in_words
from service.schemas import EnqueuedPoint, SweepChange

PATH = Path(__file__).with_name("reference.md")
_SUBMITTED = (
    SweepSpec,
    Resources,
    EarlyStopping,
    Budget,
    SearchSpace,
    FloatParameter,
    IntParameter,
    CategoricalParameter,
    TrialConfig,
)
_CHANGES = {"PATCH /v1/sweeps/{sweep_id}": SweepChange, "POST /v1/sweeps/{sweep_id}/trials": EnqueuedPoint}
_NAMED = re.compile(r" ?\(((?:CARE_SWEEP|RAY)_[A-Z_]+)(?:, )?([^()]*)\)")
_METHODS = ("get", "post", "patch", "delete")


def reference() -> str:
    """The whole page, as Markdown."""
    parts = [
        "# Reference\n\nWritten by `python docs/make_reference.py` from the program itself.",
        "## Settings\n\nEnvironment variables, read once when a process starts.",
        _table(("setting", ""), _settings()),
        "## Documents\n\nWhat a submission holds, in JSON or YAML. Unknown keys are refused. "
        "A scalar is a number, a string, true or false.",
        *(_document(model.__name__, model) for model in _SUBMITTED),
        "## HTTP\n\n`/openapi.json` has every parameter and answer.",
        _table(("request", "statuses", ""), _endpoints()),
        *(
            _document(f"Body of `{request}`", model, has_defaults=False)
            for request, model in _CHANGES.items()
        ),
        "## Commands\n\nExit status 0 done, 1 failed, 2 mistyped. `--json` prints the answer as JSON, "
        "`care-sweep --version` the version.",
        *_commands(typer.main.get_command(app), "care-sweep"),
    ]
    return "\n\n".join(parts) + "\n"


def _settings() -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    attributes = inspect.getdoc(Settings).partition("Attributes:\n")[2]
    for entry in re.split(r"\n(?=    \w+: )", attributes):
        text = " ".join(entry.partition(": ")[2].split())
        named = _NAMED.search(text)
        assert named is not None, f"the docstring of Settings names no variable for {entry}"
        more = f" ({named[2]})" if named[2] else ""
        found.setdefault(f"`{named[1]}`", []).append(text[: named.start()] + more + text[named.end() :])
    return [
        (name, "; ".join([*(text.rstrip(".") for text in texts[:-1]), texts[-1]]))
        for name, texts in found.items()
    ]


def _document(title: str, model: type[BaseModel], *, has_defaults: bool = True) -> str:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined and field.default_factory is None else ""
        if not default and has_defaults:
            value = field.get_default(call_default_factory=True)
            default = f"`{json.dumps(value.model_dump() if isinstance(value, BaseModel) else value)}`"
        kind = in_words(model.model_json_schema()["properties"][name], code="`{}`".format, named=str)
        rows.append((f"`{name}`", kind, default, field.description or ""))
    told = " ".join(inspect.getdoc(model).split())
    return f"### {title}\n\n{told}\n\n" + _table(("key", "", "default", ""), rows)


def _endpoints() -> Iterator[tuple[str, str, str]]:
    document = create_app(Settings.from_environment({}), Store(create_engine("sqlite://"))).openapi()
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                told = " ".join(operation.get("description", operation["summary"]).split())
                yield f"`{method.upper()} {path}`", " ".join(sorted(operation["responses"])), told


def _commands(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for key, child in command.commands.items():
            yield from _commands(child, f"{name} {key}")
        return
    shown = [parameter for parameter in command.params if parameter.name not in ("help", "as_json")]
    arguments = [p.metavar or p.name.upper() for p in shown if p.param_type_name == "argument"]
    rows = [
        (
            f"`{p.opts[0] if p.param_type_name == 'option' else p.metavar or p.name.upper()}`",
            " ".join((p.help or "").split()),
            _default(p),
        )
        for p in shown
    ]
    yield f"### `{' '.join([name, *arguments])}`\n\n{' '.join(command.help.split())}"
    if rows:
        yield _table(("", "", "default"), rows)


def _default(parameter: Any) -> str:
    value = parameter.default
    return "required" if parameter.required else "" if value in (None, False, ()) else f"`{value}`"


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PATH.write_text(reference())
