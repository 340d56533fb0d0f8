"""What do all commands share? The app they belong to, their common options, how answers and errors look."""

import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from typer.core import TyperCommand

from care_sweep.errors import CareSweepError, InvalidDocument, ServiceError
from care_sweep.settings import Settings
from care_sweep.terminal import printable, printable_json

if TYPE_CHECKING:
    from care_sweep.client import Client

__all__ = [
    "INTERRUPTED",
    "Checkpoint",
    "Command",
    "Json",
    "SweepId",
    "Url",
    "app",
    "client_at",
    "command",
    "print_answer",
    "print_json",
]

INTERRUPTED = 130

app = typer.Typer(
    help="Hyperparameter sweeps for CARE: start an instance, submit a sweep, take its best encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        print(f"care-sweep {version('care-sweep')}")
        raise typer.Exit


@app.callback()
def _program(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """What stands before a command."""


class Command(TyperCommand):
    """A command whose expected errors are one message, or one JSON problem, on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:  # a click.Context, or the one of typer's own copy
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (CareSweepError, OSError) as error:
            _tell(error, doing=str(ctx.info_name), as_json=ctx.params.get("as_json", False))
            raise typer.Exit(1) from None


command = functools.partial(app.command, cls=Command)

Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the service listens (default: CARE_SWEEP_URL, else this machine)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A file or a URL.")]
SweepId = Annotated[str, typer.Argument(metavar="SWEEP", help="The id that `submit` printed.")]


@contextmanager
def client_at(url: str | None) -> "Iterator[Client]":
    """A client of the service that `--url`, the setting or this machine has."""
    from care_sweep.client import Client  # noqa: PLC0415

    with Client(url or Settings.from_environment().url) as client:
        yield client


# --- what is printed ----------------------------------------------------------------------------------------


def print_answer(answer: Any, view: RenderableType, as_json: bool) -> None:
    """Print an answer as a person reads it, or as JSON."""
    if as_json:
        print_json(answer)
    elif isinstance(view, str):
        print(view)
    else:
        Console().print(view)


def print_json(answer: Any, indent: int | None = 2) -> None:
    """Print an answer as JSON; `indent=None` puts it on one line, for a stream of them."""
    text = json.dumps(answer, indent=indent, ensure_ascii=False)
    print(printable_json(text), flush=True)


def _tell(error: Exception, *, doing: str, as_json: bool) -> None:
    detail = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        detail = f"{doing} stopped at {error.filename}: {error.strerror}"
    if as_json:
        problems = error.problems if isinstance(error, ServiceError | InvalidDocument) else ()
        document = {
            "title": type(error).__name__,
            "status": error.status if isinstance(error, ServiceError) else None,
            "detail": detail,
            "problems": [problem.to_json() for problem in problems],
        }
        print(printable_json(json.dumps(document, ensure_ascii=False)), file=sys.stderr)
    else:
        print(f"error: {printable(detail)}", file=sys.stderr)
