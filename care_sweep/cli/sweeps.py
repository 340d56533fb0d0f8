"""What can be asked of a service? To take a sweep, to tell of it, to give what it found."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from care_sweep import tables
from care_sweep.answers import Sweep
from care_sweep.cli.arguments import DEFAULT_NUM_TRIALS, overridden, scalar, sweep_document
from care_sweep.cli.options import (
    INTERRUPTED,
    Json,
    SweepId,
    Url,
    client_at,
    command,
    print_answer,
    print_json,
)
from care_sweep.client import Client
from care_sweep.errors import Conflict
from care_sweep.spec import SweepState
from care_sweep.terminal import printable
from care_sweep.watching import watch as watch_events

__all__ = ["best", "download", "export", "list_sweeps", "logs", "show", "spaces", "submit", "watch"]


@command()
def submit(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SPACE_OR_FILE", help="A named search space, or a file with a sweep or a space."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Of the sweep (default: the space's).")] = None,
    num_trials: Annotated[
        int | None,
        typer.Option(help=f"Baselines included (default: the file's, else {DEFAULT_NUM_TRIALS})."),
    ] = None,
    max_concurrent_trials: Annotated[int | None, typer.Option(help="Default: the cluster is filled.")] = None,
    seed: Annotated[int | None, typer.Option(help="All trials share it.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is maximised.")] = None,
    cpus_per_trial: Annotated[int | None, typer.Option(help="What one trial holds.")] = None,
    gpus_per_trial: Annotated[
        str | None, typer.Option(help="auto (timed once), from 0 to 1, or how many.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Of being driven, at most.")] = None,
    max_gpu_hours: Annotated[float | None, typer.Option(help="Of stored epochs, at most.")] = None,
    priority: Annotated[
        float | None,
        typer.Option(help="Its weight where sweeps divide the cluster (default: the file's, or 1)."),
    ] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Print the resolved sweep and submit nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Then show it until it ends.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit a sweep."""
    options = {
        "name": name,
        "num_trials": num_trials,
        "max_concurrent_trials": max_concurrent_trials,
        "seed": seed,
        "metric": metric,
        "priority": priority,
        "resources": {
            "cpus_per_trial": cpus_per_trial,
            "gpus_per_trial": None if gpus_per_trial is None else scalar(gpus_per_trial),
        },
        "budget": {"max_seconds": max_seconds, "max_gpu_hours": max_gpu_hours},
    }
    document = overridden(sweep_document(what), options)
    with client_at(url) as client:
        if validate_only:
            print_json(client.submit(document, validate_only=True))
            return
        sweep = client.submit(document)
        if as_json and watch:
            print_json(sweep, indent=None)
        else:
            print_answer(sweep, f"sweep {sweep['id']} is {sweep['state']}", as_json)
        if watch:
            _follow(client, sweep, as_json)


@command("list")
def list_sweeps(
    state: Annotated[list[SweepState] | None, typer.Option(help="Only these; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most, newest first.", min=1)] = 20,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List sweeps, newest first."""
    with client_at(url) as client:
        sweeps = client.sweeps(states=[str(one) for one in state or []], page_size=min(limit, 1000))
        shown = [sweep for _, sweep in zip(range(limit), sweeps, strict=False)]
    print_answer(shown, tables.sweeps_table(shown), as_json)


@command()
def show(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Show one sweep and its trials."""
    with client_at(url) as client:
        sweep, trials = client.sweep(sweep_id), list(client.trials(sweep_id))
    print_answer({**sweep, "trials": trials}, tables.sweep_view(sweep, trials), as_json)


@command()
def watch(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Follow a sweep until it ends (JSON: one event a line); Ctrl-C leaves it running."""
    with client_at(url) as client:
        _follow(client, client.sweep(sweep_id), as_json)


@command()
def best(
    sweep_id: SweepId,
    k: Annotated[int, typer.Option("-k", help="How many configurations.", min=1, max=1000)] = 5,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show the best configurations beside the baselines, and what that is worth."""
    with client_at(url) as client:
        found = client.best(sweep_id, k)
    print_answer(found, tables.best_view(found), as_json)


@command()
def download(
    sweep_id: SweepId,
    path: Annotated[Path, typer.Argument(help="A file, or a folder to put it in.")] = Path(),
    trial: Annotated[int | None, typer.Option(help="This trial's instead of the best one's.", min=0)] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download the best checkpoint, or one trial's."""
    with client_at(url) as client:
        target = client.download(sweep_id, path, number=trial)
    print_answer({"path": str(target), "size_bytes": target.stat().st_size}, str(target), as_json)


@command()
def export(
    sweep_id: SweepId,
    file_format: Annotated[
        Literal["csv", "parquet", "optuna"],
        typer.Option("--format", help="optuna is a SQLite file for optuna.load_study."),
    ] = "csv",
    rows: Annotated[
        Literal["trials", "measurements"] | None,
        typer.Option(help="Of csv and parquet: one a trial or one a measurement (default: trials)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A file, or a folder to put it in (default: SWEEP-ROWS.csv, here).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is there already.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write a sweep into one file: its trials, its measurements, or both as a study of Optuna."""
    what = "optuna.db" if file_format == "optuna" else f"{rows or 'trials'}.{file_format}"
    path = output or Path()
    path = path / f"{sweep_id}-{what}" if path.is_dir() else path
    if path.exists() and not overwrite:
        raise Conflict(f"{path} is there already: name another file (--output), or replace it (--overwrite)")
    with client_at(url) as client:
        client.export(sweep_id, path, file_format=file_format, rows=rows)
    print_answer({"path": str(path), "size_bytes": path.stat().st_size}, str(path), as_json)


@command()
def logs(
    sweep_id: SweepId,
    number: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.", min=0)],
    attempt: Annotated[int | None, typer.Option(help="Default: the last one.", min=1)] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the attempt has ended (JSON: one piece a line).")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print what a trial has logged; control characters stand escaped."""
    answer = {"sweep_id": sweep_id, "number": number}
    with client_at(url) as client:
        if not follow:
            text = client.logs(sweep_id, number, attempt=attempt)
            return print_answer({**answer, "text": text}, printable(text.removesuffix("\n")), as_json)
        try:
            for text in client.follow_logs(sweep_id, number, attempt=attempt):
                if as_json:
                    print_json({**answer, "text": text}, indent=None)
                else:
                    print(printable(text), end="", flush=True)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


@command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None, as_json: Json = False
) -> None:
    """List the named search spaces of this installation, or show one."""
    from care_sweep.search.catalog import load_space, space_names  # noqa: PLC0415

    if name is None:
        return print_answer(space_names(), "\n".join(space_names()), as_json)
    space = load_space(name).model_dump(mode="json")
    return print_answer(space, tables.space_view(space), as_json)


# --- the service --------------------------------------------------------------------------------------------


def _follow(client: Client, sweep: Sweep, as_json: bool) -> None:
    """Show a sweep until it has ended; exit status 1 unless it succeeded."""
    sweep_id = sweep["id"]
    try:
        if as_json:
            for event in client.events(sweep_id):
                print_json(event, indent=None)
            state = client.sweep(sweep_id)["state"]
        else:
            state = watch_events(Console(), sweep, client.events(sweep_id)).state
            Console().print(tables.best_view(client.best(sweep_id)))
    except KeyboardInterrupt:
        print(
            f"\nsweep {sweep_id} goes on; `care-sweep watch {sweep_id}` looks again, "
            f"`care-sweep cancel {sweep_id}` ends it",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    if state != SweepState.SUCCEEDED:
        raise typer.Exit(1)
