"""Where do the pixels of a user's dataset come from? Class folders and Hugging Face Parquet.

Every reader answers `Labelled` images: uint8 RGB of one size, and class numbers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from care_sweep.errors import DatasetError
from care_sweep.learn.pixels import Labelled, is_image, stack

__all__ = ["RawDataset", "read_folder", "read_parquet", "read_tree"]

_TRAIN = "train(?:ing)?|val(?:id(?:ation)?)?|dev"
_TEST = "test(?:ing)?|eval(?:uation)?"
_SPLIT = re.compile(f"(?P<train>{_TRAIN})|(?P<test>{_TEST})")
_SPLIT_WORD = re.compile(f"(?:{_TRAIN}|{_TEST}|set|data|images?)+")


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its source has it; `test` is None where the source is one set of images."""

    class_names: tuple[str, ...]
    train: Labelled
    test: Labelled | None


def _splits_told(name: str) -> set[str]:
    """What the words of a name or a relative path say: train (or validation), test, both or neither.

    `trainset` and `Testing` are such words too, and `traintest` says both; `contest` is none.
    """
    words = filter(_SPLIT_WORD.fullmatch, re.split("[^a-z]+", name.lower()))
    return {str(found.lastgroup) for word in words for found in _SPLIT.finditer(word)}


# --- class folders ------------------------------------------------------------------------------------------


def read_folder(path: Path, resize: int | None) -> RawDataset:
    """PATH/train/CLASS/* and PATH/test/CLASS/* where both are there, else PATH/CLASS/*; names are sorted.

    Where there is no PATH/test, PATH/val/CLASS/* beside PATH/train is the test split; beside both it is not
    read. Splits of other names, as Training and test_set, are not taken for classes, but refused. Files whose
    suffix is not an image's are passed over, as is what begins with a dot.

    Raises:
        DatasetError: no classes, a class without images, an unreadable image, images of mixed size, a split
            without the other.
    """
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder; for a Parquet file use parquet:PATH")
    test = next((name for name in ("test", "val") if (path / name).is_dir()), None)
    if test is None or not (path / "train").is_dir():
        class_names = _class_names(path)
        _refuse_splits(path, class_names)
        return RawDataset(class_names, read_tree(path, class_names, resize), None)
    class_names = _class_names(path / "train")
    if _class_names(path / test) != class_names:
        raise DatasetError(f"{path}: train and {test} must hold the same class folders")
    parts = (read_tree(path / part, class_names, resize) for part in ("train", test))
    return RawDataset(class_names, *parts)


def _refuse_splits(path: Path, names: Sequence[str]) -> None:
    """Refuse splits where classes are to be; a class of images may be called train, CIFAR-100 has one."""
    splits = [name for name in names if _splits_told(name)]
    if splits and (len(splits) == len(names) or any(_class_names(path / name) for name in splits)):
        raise DatasetError(
            f"{path}: {splits[0]} is the name of a split, not of a class; put images into PATH/CLASS/, or "
            "into PATH/train/CLASS/ and PATH/test/CLASS/ (or PATH/val/CLASS/); if it is a class, call it "
            "otherwise"
        )


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(sorted(item.name for item in path.iterdir() if item.is_dir() and item.name[0] != "."))


def read_tree(path: Path, class_names: Sequence[str], resize: int | None) -> Labelled:
    """PATH/CLASS/* of the classes that are named; their numbers are their places among the names.

    Raises:
        DatasetError: as `read_folder`.
    """
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        found = [file for file in sorted((path / class_name).rglob("*")) if is_image(file)]
        if not found:
            raise DatasetError(f"{path / class_name}: no images; put some there or remove the folder")
        files += found
        labels += [label] * len(found)
    if not files:
        raise DatasetError(f"{path}: no class folders; images belong into {path}/CLASS/")
    return stack(files, [str(file) for file in files], labels, resize)


# --- Parquet ------------------------------------------------------------------------------------------------


def read_parquet(path: Path, resize: int | None) -> RawDataset:
    """Hugging Face image Parquet: columns `image` (struct of bytes and path) and `label` (class number).

    In a folder each file's split is told by a word of its name or of a folder below PATH, as in
    `train-00000-of-00002.parquet` and `default/test/0000.parquet`; validation is read as train, in order of
    the paths. Where no file tells a split, all are one set. Class names are read from the schema's metadata;
    without them classes are called by their number, and labels leave no number out.

    Raises:
        DatasetError: no such files or columns, a file whose split is not evident beside others that tell
            theirs, a damaged file, an image that is missing or unreadable, mixed sizes, a label that is no
            class number.
    """
    is_test = _test_files(path) if path.is_dir() else {path: False}
    files = list(is_test)
    train_files = [file for file in files if not is_test[file]]
    if not train_files:
        raise DatasetError(f"{path}: no Parquet files to train on; name them train-*.parquet")
    tables = {file: _read_table(file) for file in files}
    train = _read_tables({file: tables[file] for file in train_files}, resize)
    test_tables = {file: table for file, table in tables.items() if is_test[file]}
    test = _read_tables(test_tables, resize) if test_tables else None
    labels = torch.cat([part.labels for part in (train, test) if part is not None])
    return RawDataset(_names_of_classes(tables[train_files[0]], labels, path), train, test)


def _test_files(path: Path) -> dict[Path, bool]:
    """The Parquet files below a folder in order, and whether each is of the test split."""
    told = {
        file: _splits_told(file.relative_to(path).with_suffix("").as_posix())
        for file in sorted(path.rglob("*.parquet"))
    }
    if not any(told.values()):
        return dict.fromkeys(told, False)
    for file, splits in told.items():
        if len(splits) != 1:
            found = "both train and test" if splits else "neither train nor test"
            raise DatasetError(
                f"{file}: its path below {path} tells {found}; name the file or a folder after one of them, "
                "as in test-0.parquet or test/0.parquet, or take it out of the dataset"
            )
    return {file: splits == {"test"} for file, splits in told.items()}


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
    return stack(contents, names, labels, resize)


def _names_of_classes(table: pa.Table, labels: Tensor, path: Path) -> tuple[str, ...]:
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata)["info"]["features"]["label"]["names"] if metadata else None
    except (ValueError, KeyError, TypeError):
        names = None
    largest = int(labels.max())
    if names is None:
        num_labels = len(set(labels.tolist()))
        if num_labels != largest + 1:
            raise DatasetError(
                f"{path}: the largest label is {largest}, but there are {num_labels} different ones; number "
                f"the classes from 0 to {num_labels - 1}, or name them all in the schema (a ClassLabel)"
            )
        return tuple(map(str, range(num_labels)))
    if len(names) <= largest:
        raise DatasetError(f"{path}: a label is {largest}, but the schema names {len(names)} classes")
    return tuple(map(str, names))
