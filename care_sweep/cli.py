"""What can a person type? The command `care-sweep`: the client in a terminal, and the programs it starts.

Rooms that load torch, Ray or SQL are imported inside the command that needs them: `--help` stays fast.
"""

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from typer.core import TyperCommand

from care_sweep import tables
from care_sweep.answers import Sweep
from care_sweep.client import Client
from care_sweep.documents import parse
from care_sweep.errors import CareSweepError, InvalidDocument, ServiceError
from care_sweep.settings import Settings
from care_sweep.spec import Scalar, SearchSpace, SweepState, TrialConfig
from care_sweep.watching import watch as watch_events

__all__ = ["app", "main"]

_DEFAULT_NUM_TRIALS = 20
_INTERRUPTED = 130

app = typer.Typer(
    help="Hyperparameter sweeps for CARE: start an instance, submit a sweep, take its best encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Command(TyperCommand):
    """A command whose expected errors are one message, or one JSON problem, on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:  # a click.Context, or the one of typer's own copy
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (CareSweepError, OSError) as error:
            _tell(error, doing=str(ctx.info_name), as_json=ctx.params.get("as_json", False))
            raise typer.Exit(1) from None


command = functools.partial(app.command, cls=_Command)

Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the service listens (default: CARE_SWEEP_URL, else this machine)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A file or a URL.")]
SweepId = Annotated[str, typer.Argument(metavar="SWEEP", help="The id that `submit` printed.")]


# --- programs -----------------------------------------------------------------------------------------------


@command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the checkpoint and the picture go.")] = Path(
        "care-demo"
    ),
    as_json: Json = False,
) -> None:
    """A whole sweep over real images in a few minutes, from nothing to a checkpoint."""
    from care_sweep.demo import demo as run  # noqa: PLC0415

    raise typer.Exit(run(output, as_json=as_json))


@command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8484,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs for Ray (default: all).", min=1)] = None,
    num_gpus: Annotated[int | None, typer.Option(help="GPUs for Ray (default: all).", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Start the service, a runner and a local Ray with its dashboard, until Ctrl-C."""
    from care_sweep.supervise import serve as run  # noqa: PLC0415

    settings = Settings.from_environment()
    raise typer.Exit(
        run(settings, host=host, port=port, num_cpus=num_cpus, num_gpus=num_gpus, as_json=as_json)
    )


@command()
def train(
    space: Annotated[str | None, typer.Option(help="A named search space, or a file with one.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A trial's config.json, to train it again.", exists=True)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many (default: as given there).")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initialisation, order and augmentations (default: 0).")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Images (default: as given there).")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of the trial; may be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the images where they are missing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state in --output.")] = False,
    as_json: Json = False,
) -> None:
    """Train one trial here, without a service: a space's defaults or a config.json, and what --set says."""
    from care_sweep.one_trial import configure, train_one  # noqa: PLC0415

    if (space is None) == (config is None):
        raise typer.BadParameter("give one of the two", param_hint="--space / --config")
    if resume and output is None:
        raise typer.BadParameter("needs --output, the folder to go on in", param_hint="--resume")
    settings = Settings.from_environment()
    overrides = _assigned(assignments or [])
    named = {"epochs": epochs, "dataset": dataset, "seed": seed}
    overrides |= {key: value for key, value in named.items() if value is not None}
    if config is not None:
        trial = parse(TrialConfig, {**_read(config), **overrides})
    else:
        trial = configure(parse(SearchSpace, _space_document(str(space))), overrides)
    directory = output or settings.home / "trials" / time.strftime("%Y%m%d-%H%M%S")
    console = Console(stderr=as_json)
    try:
        result = train_one(console, trial, settings, directory, download=download, resume=resume)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    _print(result, tables.metrics_table(result["metrics"]), as_json)
    if not as_json:
        console.print(f"checkpoint: {result['checkpoint']}", soft_wrap=True, highlight=False, markup=False)


# --- trained encoders ---------------------------------------------------------------------------------------


@command()
def report(
    checkpoint: Checkpoint,
    output: Annotated[
        Path | None, typer.Option(help="The page (default: CHECKPOINT-report.html, here).")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Images to measure on (default: those it was trained with).")
    ] = None,
    measurements: Annotated[
        Path | None,
        typer.Option(
            help="What its epochs reported, as JSON (default: measurements.jsonl beside it, if there).",
            exists=True,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure an encoder and write one HTML page about it."""
    from care_sweep.after_training import report_on  # noqa: PLC0415

    settings = Settings.from_environment()
    found = report_on(checkpoint, settings, dataset=dataset, measurements=measurements, output=output)
    _print(found, found["path"], as_json)


@command()
def views(
    strength: Annotated[
        list[float] | None, typer.Option(help="One or more, from 0 to 2 (default: 0.5 1 1.5).")
    ] = None,
    more: Annotated[list[float] | None, typer.Argument(metavar="[STRENGTH]...", hidden=True)] = None,
    dataset: Annotated[str, typer.Option(help="Images.")] = "cifar10-mini",
    resize: Annotated[int | None, typer.Option(help="Side in pixels to bring images to.", min=8)] = None,
    seed: Annotated[int, typer.Option(help="Of the augmentations.", min=0)] = 1,
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("views.png"),
    as_json: Json = False,
) -> None:
    """Draw what augmentation strengths do: each image its own augmentation, and one for all of a split."""
    strengths = [*(strength or []), *(more or [])] or [0.5, 1.0, 1.5]
    wrong = [value for value in strengths if not 0 <= value <= 2]
    if wrong:
        raise typer.BadParameter(f"must be from 0 to 2, it is {wrong[0]:g}", param_hint="--strength")
    from care_sweep.after_training import sheet_of_views  # noqa: PLC0415

    settings = Settings.from_environment()
    made = sheet_of_views(strengths, settings, dataset=dataset, resize=resize, seed=seed, output=output)
    _print(made, made["path"], as_json)


@command()
def embed(
    folder: Annotated[Path, typer.Argument(help="Images, in any folders below it.")],
    checkpoint: Annotated[str, typer.Option(help="A checkpoint: a file or a URL.")],
    output: Annotated[Path, typer.Option(help="The Parquet file.")] = Path("embeddings.parquet"),
    resize: Annotated[
        int | None, typer.Option(help="Side in pixels (default: that of the training images).", min=8)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write features, embeddings and classes of a folder's images to a Parquet file."""
    from care_sweep.after_training import embed_images  # noqa: PLC0415

    made = embed_images(Console(stderr=True), folder, checkpoint, output, resize=resize)
    _print(made, f"{made['num_images']} images: {made['path']}", as_json)


@command("export-weights")
def export_weights(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="A name that ends in .safetensors, .pt or .pth.")] = Path(
        "weights.safetensors"
    ),
    as_json: Json = False,
) -> None:
    """Write an encoder's weights for a plain torchvision ResNet, its probe as fc."""
    from care_sweep.after_training import export  # noqa: PLC0415

    made = export(checkpoint, output)
    _print(made, made["path"], as_json)


# --- sweeps -------------------------------------------------------------------------------------------------


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
        typer.Option(help=f"Baselines included (default: the file's, else {_DEFAULT_NUM_TRIALS})."),
    ] = None,
    max_concurrent_trials: Annotated[int | None, typer.Option(help="Default: the cluster is filled.")] = None,
    seed: Annotated[int | None, typer.Option(help="All trials share it.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is maximised.")] = None,
    cpus_per_trial: Annotated[int | None, typer.Option(help="What one trial holds.")] = None,
    gpus_per_trial: Annotated[str | None, typer.Option(help="auto, or from 0 to 1.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="What the sweep may spend.")] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Print the resolved sweep and submit nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Then show it until it ends.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit a sweep."""
    document = _sweep_document(what)
    given = {
        "name": name,
        "num_trials": num_trials,
        "max_concurrent_trials": max_concurrent_trials,
        "seed": seed,
        "metric": metric,
    }
    document |= {key: value for key, value in given.items() if value is not None}
    resources = {
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": None if gpus_per_trial is None else _scalar(gpus_per_trial),
    }
    if any(value is not None for value in resources.values()):
        document["resources"] = {
            **document.get("resources", {}),
            **{key: value for key, value in resources.items() if value is not None},
        }
    if max_seconds is not None:
        document["budget"] = {"max_seconds": max_seconds}
    with _client(url) as client:
        if validate_only:
            _print_json(client.submit(document, validate_only=True))
            return
        sweep = client.submit(document)
        if as_json and watch:
            _print_json(sweep, indent=None)
        else:
            _print(sweep, f"sweep {sweep['id']} is {sweep['state']}", as_json)
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
    with _client(url) as client:
        sweeps = client.sweeps(states=[str(one) for one in state or []], page_size=min(limit, 1000))
        shown = [sweep for _, sweep in zip(range(limit), sweeps, strict=False)]
    _print(shown, tables.sweeps_table(shown), as_json)


@command()
def show(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Show one sweep and its trials."""
    with _client(url) as client:
        sweep, trials = client.sweep(sweep_id), list(client.trials(sweep_id))
    _print({**sweep, "trials": trials}, tables.sweep_view(sweep, trials), as_json)


@command()
def watch(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Follow a sweep until it ends (JSON: one event a line); Ctrl-C leaves it running."""
    with _client(url) as client:
        _follow(client, client.sweep(sweep_id), as_json)


@command()
def best(
    sweep_id: SweepId,
    k: Annotated[int, typer.Option("-k", help="How many configurations.", min=1, max=1000)] = 5,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show the best configurations beside the baselines, and what that is worth."""
    with _client(url) as client:
        found = client.best(sweep_id, k)
    _print(found, tables.best_view(found), as_json)


@command()
def download(
    sweep_id: SweepId,
    path: Annotated[Path, typer.Argument(help="A file, or a folder to put it in.")] = Path(),
    trial: Annotated[int | None, typer.Option(help="This trial's instead of the best one's.", min=0)] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download the best checkpoint, or one trial's."""
    with _client(url) as client:
        target = client.download(sweep_id, path, number=trial)
    _print({"path": str(target), "size_bytes": target.stat().st_size}, str(target), as_json)


@command()
def cancel(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """End a sweep; its running trials are cancelled."""
    with _client(url) as client:
        sweep = client.cancel(sweep_id)
    _print(sweep, f"sweep {sweep['id']} is {sweep['state']}", as_json)


@command()
def logs(
    sweep_id: SweepId,
    number: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.", min=0)],
    attempt: Annotated[int | None, typer.Option(help="Default: the last one.", min=1)] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print what a trial has logged."""
    with _client(url) as client:
        text = client.logs(sweep_id, number, attempt=attempt)
    _print({"sweep_id": sweep_id, "number": number, "text": text}, text.removesuffix("\n"), as_json)


@command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None, as_json: Json = False
) -> None:
    """List the named search spaces of this installation, or show one."""
    from care_sweep.search.catalog import load_space, space_names  # noqa: PLC0415

    if name is None:
        return _print(space_names(), "\n".join(space_names()), as_json)
    space = load_space(name).model_dump(mode="json")
    return _print(space, tables.space_view(space), as_json)


# --- documents ----------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    from care_sweep.search.catalog import read_document  # noqa: PLC0415

    try:
        return read_document(path.read_bytes())
    except OSError as error:
        raise CareSweepError(
            f"cannot read {path}: {error.strerror}; `care-sweep spaces` lists what needs no file"
        ) from error


def _looks_like_file(what: str) -> bool:
    return Path(what).suffix in (".yaml", ".yml", ".json") or Path(what).is_file()


def _sweep_document(what: str) -> dict[str, Any]:
    """A sweep from a file that holds one, or around a space from a file or of that name."""
    content = _read(Path(what)) if _looks_like_file(what) else what
    if isinstance(content, Mapping) and "parameters" not in content:
        return dict(content)
    named = (
        content if isinstance(content, str) else content.get("name") if isinstance(content, Mapping) else None
    )
    return {"name": named or Path(what).stem, "space": content, "num_trials": _DEFAULT_NUM_TRIALS}


def _space_document(what: str) -> Any:
    from care_sweep.search.catalog import load_space  # noqa: PLC0415

    if not _looks_like_file(what):
        return load_space(what).model_dump(mode="json")
    content = _read(Path(what))
    if isinstance(content, Mapping) and "space" in content:
        content = content["space"]
    return load_space(content).model_dump(mode="json") if isinstance(content, str) else content


def _assigned(assignments: list[str]) -> dict[str, Scalar]:
    pairs = [assignment.partition("=") for assignment in assignments]
    wrong = [name for name, separator, _ in pairs if not separator or not name]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE", param_hint="--set")
    return {name: _scalar(text) for name, _, text in pairs}


def _scalar(text: str) -> Scalar:
    """A word of the command line as JSON would have it, else a string."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


# --- the service --------------------------------------------------------------------------------------------


@contextmanager
def _client(url: str | None) -> Iterator[Client]:
    with Client(url or Settings.from_environment().url) as client:
        yield client


def _follow(client: Client, sweep: Sweep, as_json: bool) -> None:
    """Show a sweep until it has ended; exit status 1 unless it succeeded."""
    sweep_id = sweep["id"]
    try:
        if as_json:
            for event in client.events(sweep_id):
                _print_json(event, indent=None)
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
        raise typer.Exit(_INTERRUPTED) from None
    if state != SweepState.SUCCEEDED:
        raise typer.Exit(1)


# --- what is printed ----------------------------------------------------------------------------------------


def _print(answer: Any, view: RenderableType, as_json: bool) -> None:
    if as_json:
        _print_json(answer)
    elif isinstance(view, str):
        print(view)
    else:
        Console().print(view)


def _print_json(answer: Any, indent: int | None = 2) -> None:
    print(json.dumps(answer, indent=indent, ensure_ascii=False), flush=True)


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
        print(json.dumps(document, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"error: {detail}", file=sys.stderr)


def main() -> None:
    """The entry point; exit status 0 done, 1 failed, 2 usage."""
    app(prog_name="care-sweep")


if __name__ == "__main__":
    main()
