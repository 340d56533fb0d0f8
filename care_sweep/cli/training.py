"""What can be had without a service? A trial trained in the terminal, and what its encoder is good for."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from care_sweep import tables
from care_sweep.cli.arguments import assigned, overridden, read, space_document
from care_sweep.cli.options import INTERRUPTED, Checkpoint, Json, command, print_answer
from care_sweep.documents import parse
from care_sweep.settings import Settings
from care_sweep.spec import SearchSpace, TrialConfig

__all__ = ["embed", "export_weights", "report", "test", "train", "views"]


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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the trial that --output holds, and train anew.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one trial here, without a service: a space's defaults or a config.json, and what --set says."""
    from care_sweep.one_trial import configure, train_one  # noqa: PLC0415

    if (space is None) == (config is None):
        raise typer.BadParameter("give one of the two", param_hint="--space / --config")
    if resume and output is None:
        raise typer.BadParameter("needs --output, the folder to go on in", param_hint="--resume")
    if resume and overwrite:
        raise typer.BadParameter("give one of the two", param_hint="--resume / --overwrite")
    settings = Settings.from_environment()
    overrides = assigned(assignments or [], given_as="--set")
    named = {"epochs": epochs, "dataset": dataset, "seed": seed}
    overrides |= {key: value for key, value in named.items() if value is not None}
    if config is not None:
        trial = parse(TrialConfig, overridden(read(config), overrides))
    else:
        trial = configure(parse(SearchSpace, space_document(str(space))), overrides)
    directory = output or settings.home / "trials" / time.strftime("%Y%m%d-%H%M%S")
    console = Console(stderr=as_json)
    try:
        result = train_one(
            console, trial, settings, directory, download=download, resume=resume, overwrite=overwrite
        )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_answer(result, tables.metrics_table(result["metrics"]), as_json)
    if not as_json:
        console.print(f"checkpoint: {result['checkpoint']}", soft_wrap=True, highlight=False, markup=False)


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
            help="What its epochs reported: a measurements.jsonl, or for a downloaded checkpoint what the "
            "service answers at /v1/sweeps/SWEEP/trials/NUMBER/measurements "
            "(default: measurements.jsonl beside it, if there).",
            exists=True,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure an encoder and write one HTML page about it."""
    from care_sweep.after_training import report_on  # noqa: PLC0415

    settings = Settings.from_environment()
    found = report_on(checkpoint, settings, dataset=dataset, measurements=measurements, output=output)
    print_answer(found, found["path"], as_json)


@command()
def test(
    checkpoint: Checkpoint,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Images to test on (default: those it was trained with, if they have not changed)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure an encoder on the test split, for a final report: choose by validation, each time is counted.

    kNN and linear probe learn from train and validation together. Who has tested what, and when, is kept in
    test-reads.jsonl in CARE_SWEEP_HOME. Readings of the same images count together, and those of one name of
    a dataset, whatever its size or contents were.
    """
    from care_sweep.after_training import measure_on_test  # noqa: PLC0415

    found = measure_on_test(checkpoint, Settings.from_environment(), dataset=dataset)
    print_answer(found, tables.metrics_table(found["metrics"]), as_json)
    if not as_json:
        if not found["same_images"]:
            print(
                "these are not the images it was trained with, as they were then: it may have been trained "
                "with some that are in this test split"
            )
        print(f"read {found['num_reads']} of this test split; all are in {found['log']}")


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
    print_answer(made, made["path"], as_json)


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
    print_answer(made, f"{made['num_images']} images: {made['path']}", as_json)


@command("export-weights")
def export_weights(
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option(help="A name that ends in .safetensors, .pt, .pth or .onnx.")
    ] = Path("weights.safetensors"),
    size: Annotated[
        int | None,
        typer.Option(help="Side in pixels of ONNX's images (default: that of the training images).", min=8),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an encoder's weights for a plain torchvision ResNet, its probe as fc, or the whole as ONNX.

    The ONNX file takes images (N, 3, H, W) in [0, 1] and gives features, embeddings and class scores. To
    write one, install care-sweep with its extra `onnx`.
    """
    if size is not None and output.suffix != ".onnx":
        raise typer.BadParameter(f"is for an .onnx file, --output is {output}", param_hint="--size")
    from care_sweep.after_training import export  # noqa: PLC0415

    made = export(checkpoint, output, size=size)
    print_answer(made, made["path"], as_json)
