"""Which sets of images have others published, and how are they read? torchvision's, and ImageNet-100."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from care_sweep.errors import DatasetError
from care_sweep.learn.pixels import Labelled, stack
from care_sweep.learn.readers import RawDataset, read_tree

__all__ = ["read_imagenet100", "read_torchvision"]

_IMAGENET100 = Path(__file__).parent / "images" / "imagenet100.txt"
"""The 100 classes of Tian et al., 'Contrastive Multiview Coding' (2020), sorted; the ones in common use."""
_CLASS_LIST = "classes.txt"
_NUM_NAMED = 3  # of the class folders that are missing


# --- torchvision --------------------------------------------------------------------------------------------


def read_torchvision(name: str, path: Path, resize: int | None, *, download: bool) -> RawDataset:
    """cifar10, cifar100, stl10 (its labelled images) or flowers102 as torchvision keeps them below `path`.

    The train split of flowers102 is its published train and validation split together, 2,040 images.

    Raises:
        DatasetError: the files are missing or damaged, the download failed, or scipy, with which torchvision
            reads the labels of flowers102, is not installed.
    """
    if name == "flowers102":
        _require_scipy()
    try:
        return _READERS[name](path, resize, download)
    except DatasetError:  # which is a ValueError, and tells of one image
        raise
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DatasetError(
            f"dataset {name!r} in {path} cannot be read ({error}); remove it and fetch it with --download"
        ) from error


def _read_cifar(name: str, path: Path, resize: int | None, download: bool) -> RawDataset:
    from torchvision import datasets  # noqa: PLC0415  (slow to import, and most datasets do without)

    kind: Callable[..., Any] = getattr(datasets, name)
    train, test = (kind(path, train=is_train, download=download) for is_train in (True, False))
    parts = (_from_pixels(part.data, part.targets, resize) for part in (train, test))
    return RawDataset(tuple(train.classes), *parts)


def _read_stl10(path: Path, resize: int | None, download: bool) -> RawDataset:
    from torchvision import datasets  # noqa: PLC0415

    train, test = (datasets.STL10(path, split=split, download=download) for split in ("train", "test"))
    parts = (_from_pixels(part.data.transpose(0, 2, 3, 1), part.labels, resize) for part in (train, test))
    return RawDataset(tuple(train.classes), *parts)


def _read_flowers(path: Path, resize: int | None, download: bool) -> RawDataset:
    from torchvision import datasets  # noqa: PLC0415

    def read(*splits: str) -> Labelled:
        parts = [datasets.Flowers102(path, split=s, download=download, loader=Path) for s in splits]
        rows = [part[row] for part in parts for row in range(len(part))]  # a file and its class number each
        files = [file for file, _ in rows]
        return stack(files, [str(file) for file in files], [label for _, label in rows], resize)

    train, test = read("train", "val"), read("test")
    return RawDataset(tuple(datasets.Flowers102.classes), train, test)


_READERS: dict[str, Callable[[Path, int | None, bool], RawDataset]] = {
    "cifar10": partial(_read_cifar, "CIFAR10"),
    "cifar100": partial(_read_cifar, "CIFAR100"),
    "stl10": _read_stl10,
    "flowers102": _read_flowers,
}


def _from_pixels(pixels_NHW3: Any, labels: Any, resize: int | None) -> Labelled:
    numbers = np.asarray(labels)
    if resize is not None:
        names = [f"image {row}" for row in range(len(pixels_NHW3))]
        return stack(list(pixels_NHW3), names, numbers.tolist(), resize)
    images = torch.from_numpy(np.ascontiguousarray(pixels_NHW3.transpose(0, 3, 1, 2)))
    return Labelled(images, torch.as_tensor(numbers, dtype=torch.int64))


def _require_scipy() -> None:
    if importlib.util.find_spec("scipy") is None:
        raise DatasetError(
            "dataset 'flowers102' keeps its labels in files that torchvision reads with scipy, which is not "
            "installed: pip install care-sweep[flowers]"
        )


# --- ImageNet-100 -------------------------------------------------------------------------------------------


def read_imagenet100(path: Path, resize: int | None) -> RawDataset:
    """100 classes of an ImageNet tree PATH/train/CLASS/* and PATH/val/CLASS/*; val is the test split.

    The classes are those that PATH/classes.txt names, a folder a line, else the published 100. They are
    numbered in sorted order, whatever the order of the lines.

    Raises:
        DatasetError: the list is malformed, folders of classes are missing, an image is unreadable.
    """
    class_names = _listed_classes(path)
    _require_folders(path, class_names)
    train, test = (read_tree(path / part, class_names, resize) for part in ("train", "val"))
    return RawDataset(class_names, train, test)


def _listed_classes(path: Path) -> tuple[str, ...]:
    chosen = path / _CLASS_LIST
    file = chosen if chosen.exists() else _IMAGENET100
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); name one class folder a line") from error
    names = [line for line in lines if line]
    if not names:
        raise DatasetError(
            f"{file}: names no class; name one class folder a line, or remove the file for the published 100"
        )
    for number, name in enumerate(lines, 1):
        if name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
            raise DatasetError(
                f"{file}, line {number}: {name!r} is no name of a folder; write as in n01558993"
            )
        if name and name in lines[: number - 1]:
            raise DatasetError(f"{file}, line {number}: {name!r} stands twice; remove one of the lines")
    return tuple(sorted(names))


def _require_folders(path: Path, class_names: Sequence[str]) -> None:
    wanted = [f"{part}/{name}" for part in ("train", "val") for name in class_names]
    missing = [folder for folder in wanted if not (path / folder).is_dir()]
    if missing:
        named = ", ".join(missing[:_NUM_NAMED]) + (", ..." if len(missing) > _NUM_NAMED else "")
        raise DatasetError(
            f"{path}: {len(missing)} of {len(wanted)} class folders are missing ({named}); put them there, "
            f"or name the classes that are there in {path / _CLASS_LIST}, one a line"
        )
