"""Where do the pixels of a dataset come from? Class folders, Hugging Face Parquet, torchvision's sets.

Every reader answers `Labelled` images: uint8 RGB of one size, and class numbers.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from care_sweep.errors import DatasetError

__all__ = [
    "Labelled",
    "RawDataset",
    "find_images",
    "read_folder",
    "read_images",
    "read_parquet",
    "read_torchvision",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_NUM_THREADS = 4  # Pillow decodes outside the interpreter's lock


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, 3, H, W) and class numbers int64 (N)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its source has it; `test` is None where the source is one set of images."""

    class_names: tuple[str, ...]
    train: Labelled
    test: Labelled | None


# --- pixels -------------------------------------------------------------------------------------------------


def _decode(content: bytes | Path, name: str, resize: int | None) -> NDArray[np.uint8]:
    """The image as (H, W, 3) RGB.

    Grayscale is repeated, 16 bits are scaled to 8, transparency is laid on white. With `resize` the largest
    central square is scaled to that side.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            picture = _to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{name}: not a readable image ({error}); replace the file or take it out of the dataset"
        ) from error
    if resize is not None:
        picture = ImageOps.fit(picture, (resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("more than 16 bits a pixel; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _stack(
    contents: Iterable[bytes | Path], names: Sequence[str], labels: Sequence[int], resize: int | None
) -> Labelled:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        pictures = list(pool.map(partial(_decode, resize=resize), contents, names))
    for picture, name in zip(pictures, names, strict=True):
        if picture.shape != pictures[0].shape:
            raise DatasetError(
                f"{name} is {_size(picture)} pixels and {names[0]} is {_size(pictures[0])}: "
                "give `resize` (the side in pixels) to bring all images to one size"
            )
    return Labelled(_to_tensor(np.stack(pictures)), torch.tensor(labels, dtype=torch.int64))


def _to_tensor(pixels_NHW3: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels_NHW3.transpose(0, 3, 1, 2)))


def _size(picture: NDArray[np.uint8]) -> str:
    height, width, _ = picture.shape
    return f"{width}x{height}"


# --- images without classes ---------------------------------------------------------------------------------


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted, without those whose name begins with a dot.

    Raises:
        DatasetError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    files = [file for file in sorted(folder.rglob("*")) if _is_image(file)]
    if not files:
        raise DatasetError(f"{folder}: no images; their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def read_images(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """The images as uint8 (N, 3, height, width), the largest central part of that shape scaled to `size`.

    Raises:
        DatasetError: one of them is unreadable.
    """
    height, width = size

    def read(file: Path) -> NDArray[np.uint8]:
        picture = _decode(file, str(file), None)
        if picture.shape[:2] == size:
            return picture
        fitted = ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.BILINEAR)
        return np.asarray(fitted)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return _to_tensor(np.stack(list(pool.map(read, files))))


# --- class folders ------------------------------------------------------------------------------------------


def read_folder(path: Path, resize: int | None) -> RawDataset:
    """PATH/train/CLASS/* and PATH/test/CLASS/* where both are there, else PATH/CLASS/*; names are sorted.

    Files whose suffix is not an image's are passed over, as is what begins with a dot.

    Raises:
        DatasetError: no classes, a class without images, an unreadable image, images of mixed size.
    """
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder; for a Parquet file use parquet:PATH")
    if not ((path / "train").is_dir() and (path / "test").is_dir()):
        class_names = _class_names(path)
        return RawDataset(class_names, _read_tree(path, class_names, resize), None)
    class_names = _class_names(path / "train")
    if _class_names(path / "test") != class_names:
        raise DatasetError(f"{path}: train and test must hold the same class folders")
    train, test = (_read_tree(path / part, class_names, resize) for part in ("train", "test"))
    return RawDataset(class_names, train, test)


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(sorted(item.name for item in path.iterdir() if item.is_dir() and item.name[0] != "."))


def _read_tree(path: Path, class_names: Sequence[str], resize: int | None) -> Labelled:
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        found = [file for file in sorted((path / class_name).rglob("*")) if _is_image(file)]
        if not found:
            raise DatasetError(f"{path / class_name}: no images; put some there or remove the folder")
        files += found
        labels += [label] * len(found)
    if not files:
        raise DatasetError(f"{path}: no class folders; images belong into {path}/CLASS/")
    return _stack(files, [str(file) for file in files], labels, resize)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "." and file.is_file()


# --- Parquet ------------------------------------------------------------------------------------------------


def read_parquet(path: Path, resize: int | None) -> RawDataset:
    """Hugging Face image Parquet: columns `image` (struct of bytes and path) and `label` (class number).

    In a folder, files named test* are the test split and all others train, in order of their names. Class
    names are read from the schema's metadata; without them classes are called by their number.

    Raises:
        DatasetError: no such files or columns, a damaged file, an image that is missing or unreadable, mixed
            sizes, a label that is no class number.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    is_test = {file: path.is_dir() and file.name.startswith("test") for file in files}
    train_files = [file for file in files if not is_test[file]]
    if not train_files:
        raise DatasetError(f"{path}: no Parquet files to train on; name them train-*.parquet")
    tables = {file: _read_table(file) for file in files}
    train = _read_tables({file: tables[file] for file in train_files}, resize)
    test_tables = {file: table for file, table in tables.items() if is_test[file]}
    test = _read_tables(test_tables, resize) if test_tables else None
    num_classes = 1 + max(int(part.labels.max()) for part in (train, test) if part is not None)
    return RawDataset(_names_of_classes(tables[train_files[0]], num_classes, path), train, test)


def _read_table(file: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{file}: not a readable Parquet file ({error}); fetch it again") from error
    columns = table.schema
    if "image" not in columns.names or "label" not in columns.names:
        raise DatasetError(f"{file}: needs columns image and label, it has {', '.join(columns.names)}")
    image = columns.field("image").type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise DatasetError(f"{file}: column image must be a struct with a field bytes, it is {image}")
    if not pa.types.is_integer(columns.field("label").type):
        raise DatasetError(f"{file}: column label must be integer, it is {columns.field('label').type}")
    if table.num_rows == 0:
        raise DatasetError(f"{file}: holds no rows; take it out of the dataset")
    return table


def _read_tables(tables: dict[Path, pa.Table], resize: int | None) -> Labelled:
    contents: list[bytes] = []
    names: list[str] = []
    labels: list[int] = []
    for file, table in tables.items():
        for row, (image, label) in enumerate(
            zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
        ):
            name = f"{file}, row {row}"
            if image is None or image["bytes"] is None:
                raise DatasetError(f"{name}: the image is missing; store its bytes in the file")
            if label is None or label < 0:
                raise DatasetError(f"{name}: the label is {label}; it must be a class number from 0")
            contents.append(image["bytes"])
            names.append(name)
            labels.append(label)
    return _stack(contents, names, labels, resize)


def _names_of_classes(table: pa.Table, num_classes: int, path: Path) -> tuple[str, ...]:
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata)["info"]["features"]["label"]["names"] if metadata else None
    except (ValueError, KeyError, TypeError):
        names = None
    if names is None:
        return tuple(str(number) for number in range(num_classes))
    if len(names) < num_classes:
        raise DatasetError(f"{path}: a label is {num_classes - 1}, but the schema names {len(names)} classes")
    return tuple(map(str, names))


# --- torchvision --------------------------------------------------------------------------------------------


def read_torchvision(name: str, path: Path, resize: int | None, *, download: bool) -> RawDataset:
    """cifar10, cifar100 or stl10 (its labelled images) as torchvision keeps them below `path`.

    Raises:
        DatasetError: the files are missing or damaged, or the download failed.
    """
    from torchvision import datasets  # noqa: PLC0415  (slow to import, and most datasets do without)

    def build(part: str) -> Any:
        if name == "stl10":
            return datasets.STL10(path, split=part, download=download)
        kind: Callable[..., Any] = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        return kind(path, train=part == "train", download=download)

    try:
        train, test = build("train"), build("test")
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DatasetError(
            f"dataset {name!r} in {path} cannot be read ({error}); remove it and fetch it with --download"
        ) from error
    return RawDataset(tuple(train.classes), _from_torchvision(train, resize), _from_torchvision(test, resize))


def _from_torchvision(part: Any, resize: int | None) -> Labelled:
    stl10 = hasattr(part, "labels")
    pixels_NHW3 = part.data.transpose(0, 2, 3, 1) if stl10 else part.data
    labels = torch.as_tensor(np.asarray(part.labels if stl10 else part.targets), dtype=torch.int64)
    if resize is not None:
        size = (resize, resize)
        pictures = (Image.fromarray(pixels) for pixels in pixels_NHW3)
        pixels_NHW3 = np.stack(
            [np.asarray(ImageOps.fit(p, size, Image.Resampling.BILINEAR)) for p in pictures]
        )
    return Labelled(_to_tensor(pixels_NHW3), labels)
