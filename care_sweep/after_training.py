"""What can be done with a trained encoder, in a terminal? Report, test, sheet, embeddings, plain weights."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from care_sweep.connection import without_password
from care_sweep.counted_reads import count_read
from care_sweep.documents import parse
from care_sweep.errors import DatasetError, InvalidDocument
from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.data import Dataset, load_dataset
from care_sweep.loading import load
from care_sweep.one_trial import MEASUREMENTS_NAME
from care_sweep.settings import Settings
from care_sweep.spec import Measurement

__all__ = ["embed_images", "export", "measure_on_test", "read_measurements", "report_on", "sheet_of_views"]

_READS_NAME = "test-reads.jsonl"


def report_on(
    source: str, settings: Settings, *, dataset: str | None, measurements: Path | None, output: Path | None
) -> dict[str, Any]:
    """Write the page about a checkpoint; where it lies, and what was measured for it."""
    from care_sweep.learn.report import examine, render  # noqa: PLC0415

    encoder = _load(source)
    log = measurements or Path(source).with_name(MEASUREMENTS_NAME)
    history = read_measurements(log) if measurements is not None or log.is_file() else []
    found = examine(encoder, _dataset(encoder, settings, dataset))
    path = output or Path(f"{Path(source).stem or 'checkpoint'}-report.html")
    path.write_text(render(encoder, found, history))
    return {"path": str(path), "num_epochs_shown": len(history), "metrics": found.metrics}


def measure_on_test(source: str, settings: Settings, *, dataset: str | None) -> dict[str, Any]:
    """A checkpoint's accuracies on the test split, and how many times that has been read now.

    Raises:
        DatasetError: no images are named, and those that the encoder was trained with have changed since.
    """
    from care_sweep.learn.final_report import accuracies_on_test  # noqa: PLC0415

    encoder = _load(source)
    data = _dataset(encoder, settings, dataset)
    same_images = encoder.knows(data)
    if dataset is None and not same_images:
        # a changed set is cut anew, so that images of train may be in its test split
        raise DatasetError(
            f"{data.name} has changed since the encoder was trained with it (its fingerprint is "
            f"{data.fingerprint[:12]}, it was {encoder.manifest['dataset']['fingerprint'][:12]}): the test "
            "split may hold images of that training; bring the images back as they were, or name those to "
            "test on with --dataset"
        )
    log = settings.home / _READS_NAME
    checkpoint = {
        "checkpoint": without_password(source),
        "manifest_sha256": encoder.manifest["manifest_sha256"],
    }
    num_reads = count_read(log, fingerprint=data.fingerprint, dataset=data.name, **checkpoint)
    return {
        **checkpoint,
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "same_images": same_images,
        "num_reads": num_reads,
        "log": str(log),
        "metrics": accuracies_on_test(encoder, data),
    }


def sheet_of_views(
    strengths: list[float], settings: Settings, *, dataset: str, resize: int | None, seed: int, output: Path
) -> dict[str, Any]:
    """Write the sheet of what augmentations do to a dataset's images; where it lies."""
    from care_sweep.learn.sheets import views_sheet  # noqa: PLC0415

    data = load_dataset(dataset, download_directory=settings.download_directory, resize=resize)
    views_sheet(data, strengths, seed=seed).save(output)
    return {"path": str(output), "strengths": strengths}


def embed_images(
    console: Console, folder: Path, source: str, output: Path, *, resize: int | None
) -> dict[str, Any]:
    """Write the embeddings of a folder's images to Parquet; where they lie, and how many."""
    from care_sweep.learn.embed import embed_folder  # noqa: PLC0415

    encoder = _load(source)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("images")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        size = None if resize is None else (resize, resize)
        num_images = embed_folder(encoder, folder, output, size=size, progress=show)
    return {"path": str(output), "num_images": num_images}


def export(source: str, output: Path, *, size: int | None = None) -> dict[str, Any]:
    """Write a checkpoint's weights with torchvision's keys, or as `.onnx` all it computes; where they lie.

    `size` is the side in pixels of the images that an ONNX file takes.
    """
    from care_sweep.learn.export import export_weights  # noqa: PLC0415
    from care_sweep.learn.onnx_export import export_onnx  # noqa: PLC0415

    encoder = load(source)
    if output.suffix == ".onnx":
        export_onnx(encoder, output, size=None if size is None else (size, size))
    else:
        export_weights(encoder, output)
    return {"path": str(output), "network": encoder.config.encoder, "num_classes": len(encoder.class_names)}


def _load(source: str) -> LoadedEncoder:
    import torch  # noqa: PLC0415

    return load(source).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _dataset(encoder: LoadedEncoder, settings: Settings, name: str | None) -> Dataset:
    """The encoder's own images, or others brought to the size of its own."""
    resize = encoder.config.resize
    if name is not None and resize is None and encoder.image_size is not None:
        height, width = encoder.image_size
        resize = height if height == width else None
    chosen = name or encoder.config.dataset
    try:
        return load_dataset(chosen, download_directory=settings.download_directory, resize=resize)
    except DatasetError as error:
        if name is not None:
            raise
        raise DatasetError(f"{error} (or name other images with --dataset)") from error


def read_measurements(path: Path) -> list[Measurement]:
    """Measurements by epoch, the last of each, from a file that holds one a line as `train` writes them, the
    service's answer of `/v1/sweeps/ID/trials/NUMBER/measurements`, or the list in it.

    Raises:
        DatasetError: it holds none of these.
    """
    known = Measurement.model_fields
    try:
        found = _rows(path.read_text())
        measured = [parse(Measurement, {key: row[key] for key in row if key in known}) for row in found]
    except (InvalidDocument, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: does not hold measurements ({error}); give a measurements.jsonl, or what a service "
            "answers at /v1/sweeps/ID/trials/NUMBER/measurements"
        ) from error
    return sorted({one.epoch: one for one in measured}.values(), key=lambda one: one.epoch)


def _rows(text: str) -> Any:
    try:
        whole = json.loads(text)
    except ValueError:  # more than one line, each a document of its own
        return [json.loads(line) for line in text.splitlines()]
    return whole.get("measurements", [whole]) if isinstance(whole, dict) else whole
