"""Which images does a trial train on, which select it, and which must it never see?

Validation is 10 % of train, stratified, seed 0, whatever the trial's own seed is. The test split is for a
final report only: nothing in training, evaluation or search reads it.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from care_sweep.datasets import DatasetSource, locate, refuse_escapes, require_one_size
from care_sweep.errors import DatasetError
from care_sweep.learn.fetching import fetch
from care_sweep.learn.pixels import Labelled
from care_sweep.learn.published_sets import read_imagenet100, read_torchvision
from care_sweep.learn.randomness import Stream, generator
from care_sweep.learn.readers import RawDataset, read_folder, read_parquet

__all__ = ["BUNDLED_IMAGES", "Dataset", "Split", "load_dataset"]

BUNDLED_IMAGES = Path(__file__).parent / "images" / "cifar10-mini"
_HELD_OUT_SHARE = 0.1
_LEAST_SIDE_PIXELS = 8
_CHUNK_PIXELS = 2**20  # that are copied at once: 1,024 images of 32 pixels

Split = Labelled


@dataclass(frozen=True)
class Dataset:
    """One set of images, cut.

    Attributes:
        fingerprint: SHA-256 over class names, pixels and labels of all images; two datasets of one
            fingerprint have the same splits.
        mean, std: of the train split's channels, pixels in [0, 1].
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def on(self, device: torch.device) -> Self:
        """With train and validation there, once for all trials of a process; the test split stays."""
        train, validation = (
            Labelled(split.images.to(device), split.labels.to(device))
            for split in (self.train, self.validation)
        )
        return dataclasses.replace(self, train=train, validation=validation)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[-2:]
        return int(height), int(width)


def load_dataset(
    name: str,
    *,
    download_directory: Path,
    roots: Sequence[Path] | None = None,
    uris: Sequence[str] = (),
    resize: int | None = None,
    download: bool = False,
) -> Dataset:
    """Read a dataset whole into memory and cut it.

    What lies in an object store is brought to this machine first, once (`care_sweep.learn.fetching`).

    A source without a test split of its own has 10 % of each class cut off as test first (stratified, seed
    0); then 10 % of each class of train become validation. Both cuts take at least one image of each class.

    Args:
        name: one of `care_sweep.datasets.DATASET_FORMS`.
        download_directory: where torchvision's sets are kept, and what was fetched.
        roots: folders that a path in the name must lie under, whatever links are in them; None allows every
            path and URI.
        uris: prefixes of object stores that a URI in the name must lie under.
        resize: the largest central square of each image is scaled to this side, in pixels.
        download: fetch torchvision's sets where they are missing.

    Raises:
        DatasetError: the data is missing, unreadable or unfit; the message names the file and a remedy.
        StorageError: an object store is out of reach or refuses.
    """
    source = locate(name, download_directory=download_directory, roots=roots, uris=uris, download=download)
    require_one_size(name, is_resized=resize is not None)
    if source.uri is not None:
        source = dataclasses.replace(source, path=fetch(source.uri, download_directory / "s3"))
    elif roots is not None:
        refuse_escapes(source, roots)
    return _cut(name, _read(source, resize, download=download))


def _read(source: DatasetSource, resize: int | None, *, download: bool) -> RawDataset:
    if source.path is None:
        return read_parquet(BUNDLED_IMAGES, resize)
    if source.kind == "torchvision":
        return read_torchvision(source.name, source.path, resize, download=download)
    if source.kind == "imagenet100":
        return read_imagenet100(source.path, resize)
    if source.kind == "folder":
        return read_folder(source.path, resize)
    return read_parquet(source.path, resize)


def _cut(name: str, raw: RawDataset) -> Dataset:
    """The dataset in the memory of the raw images, whose rows move."""
    train, test = raw.train, raw.test
    _check(name, raw)
    fingerprint = _fingerprint(raw)
    if test is None:
        train, test = _stratified(train, "test cut")
    train, validation = _stratified(train, "validation cut")
    mean, std = _channel_statistics(train.images)
    return Dataset(name, raw.class_names, train, validation, test, fingerprint, mean, std)


def _check(name: str, raw: RawDataset) -> None:
    counts = torch.bincount(raw.train.labels, minlength=len(raw.class_names)).tolist()
    present = [count for count in counts if count]
    if len(present) < 2:
        raise DatasetError(
            f"dataset {name!r} has one class only; it needs two or more "
            "(class folders directly below PATH, or below both PATH/train and PATH/test or PATH/val)"
        )
    least = 3 if raw.test is None else 2
    for class_name, count in zip(raw.class_names, counts, strict=True):
        if 0 < count < least:
            raise DatasetError(
                f"dataset {name!r}: class {class_name!r} has {count} image{'s' * (count > 1)}; "
                f"it needs {least} or more, so that each split gets one: add images or remove the class"
            )
    if raw.test is not None and raw.test.images.shape[1:] != raw.train.images.shape[1:]:
        raise DatasetError(
            f"dataset {name!r}: train and test images differ in size: give `resize` (the side in pixels)"
        )
    if min(raw.train.images.shape[-2:]) < _LEAST_SIDE_PIXELS:
        raise DatasetError(
            f"dataset {name!r}: images must be {_LEAST_SIDE_PIXELS} pixels or more on each side"
        )


def _stratified(whole: Labelled, stream: Stream) -> tuple[Labelled, Labelled]:
    """The rest and the cut: 10 % of each class, at least one, each in the order of the source.

    The rest stays in the memory of the whole: a set that fits into memory once need not fit twice.
    """
    source = generator(0, stream)
    cut = torch.zeros(len(whole.labels), dtype=torch.bool)
    for label in range(int(whole.labels.max()) + 1):
        rows = (whole.labels == label).nonzero()[:, 0]
        size = min(len(rows), max(1, round(_HELD_OUT_SHARE * len(rows))))
        cut[rows[torch.randperm(len(rows), generator=source)[:size]]] = True
    taken = Labelled(whole.images[cut], whole.labels[cut])
    return Labelled(_moved_up(whole.images, ~cut), whole.labels[~cut]), taken


def _moved_up(images: Tensor, kept: Tensor) -> Tensor:
    """The rows that are kept, moved to the front in their order; a row only ever moves up."""
    rows, size = kept.nonzero()[:, 0], _chunk(images)
    for number, chunk in enumerate(torch.split(rows, size)):
        images[number * size :][: len(chunk)] = images[chunk]
    return images[: len(rows)]


def _chunk(images: Tensor) -> int:
    """How many of the images are copied at once."""
    return max(1, _CHUNK_PIXELS // images[0, 0].numel())


def _fingerprint(raw: RawDataset) -> str:
    digest = hashlib.sha256("\n".join(raw.class_names).encode())
    for part in (raw.train, raw.test):
        if part is not None:
            digest.update(str(tuple(part.images.shape)).encode())
            digest.update(part.images.contiguous().numpy().data)
            digest.update(part.labels.numpy().data)
    return digest.hexdigest()


_Channels = tuple[float, float, float]


def _channel_statistics(images: Tensor) -> tuple[_Channels, _Channels]:
    """Mean and standard deviation over all pixels; a channel that never changes gets the step of 8 bits."""
    count = images.numel() / 3
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for chunk in torch.split(images, _chunk(images)):
        values = chunk.transpose(0, 1).flatten(1).double() / 255
        total += values.sum(1)
        squares += values.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
    return _three(mean), _three(std)


def _three(values: Tensor) -> _Channels:
    red, green, blue = values.tolist()
    return red, green, blue
