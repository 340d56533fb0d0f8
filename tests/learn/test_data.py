"""Reading images: the bundled set, Parquet, class folders, odd pixels, cuts, and every bad input."""

import dataclasses
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawn_images import load, pixels, png, write_tree
from numpy.typing import NDArray
from PIL import Image

from care_sweep.errors import DatasetError
from care_sweep.learn import data as data_module
from care_sweep.learn.data import BUNDLED_IMAGES, Dataset

CIFAR10 = Path(os.environ.get("CARE_SWEEP_TEST_CIFAR10", "shared/data/cifar10"))
"""CIFAR-10 whole, as Parquet: 70 MB that the repository does not ship."""


def write_parquet(
    path: Path, num_rows: int = 12, *, names: list[str] | None = None, first: int = 0, **columns: Any
) -> Path:
    table = {
        "image": [{"bytes": png(pixels(first + n)), "path": f"{n}.png"} for n in range(num_rows)],
        "label": [n % 2 for n in range(num_rows)],
        **columns,
    }
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    schema = pa.table(table).schema.with_metadata({"huggingface": json.dumps(features)} if names else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table, schema), path)
    return path


# --- the bundled set ----------------------------------------------------------------------------------------


def test_bundled_set(mini: Dataset) -> None:
    assert mini.train.images.shape == (3600, 3, 32, 32)
    assert mini.train.images.dtype == torch.uint8
    assert mini.train.labels.dtype == torch.int64
    for split, images_a_class in ((mini.train, 360), (mini.validation, 40), (mini.test, 100)):
        assert split.labels.bincount().tolist() == [images_a_class] * 10
    assert mini.class_names[:3] == ("airplane", "automobile", "bird")
    assert mini.image_size == (32, 32)
    assert mini.fingerprint == "d13c405d8374f0bbb7e1808d2b435080e56f4b1f6fd18c77f23ec50fb8d0297d"
    assert mini.mean == pytest.approx((0.4934, 0.4840, 0.4482), abs=1e-4)


def test_bundled_set_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED_IMAGES.rglob("*")) <= 11_000_000


def test_splits_share_no_image(mini: Dataset) -> None:
    splits = (mini.train, mini.validation, mini.test)
    images = [image.numpy().tobytes() for split in splits for image in split.images]
    assert len(set(images)) == len(images)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason="CARE_SWEEP_TEST_CIFAR10 names no CIFAR-10")
def test_the_bundle_is_cut_again_byte_for_byte(tmp_path: Path, mini: Dataset) -> None:
    from care_sweep.learn.bundle import cut_bundle

    cut_bundle(CIFAR10, tmp_path)
    for file in BUNDLED_IMAGES.iterdir():
        mine, theirs = pq.ParquetFile(tmp_path / file.name), pq.ParquetFile(file)
        assert mine.read().equals(theirs.read())
        if mine.metadata.created_by == theirs.metadata.created_by:
            assert (tmp_path / file.name).read_bytes() == file.read_bytes()


# --- cuts ---------------------------------------------------------------------------------------------------


def test_a_tree_is_cut_by_class_and_repeats(tmp_path: Path) -> None:
    name = f"folder:{write_tree(tmp_path / 'data', {'b': 20, 'a': 40})}"
    data, again = load(name), load(name)
    assert data.class_names == ("a", "b")
    assert data.test.labels.bincount().tolist() == [4, 2]
    assert data.validation.labels.bincount().tolist() == [4, 2]
    assert data.train.labels.bincount().tolist() == [32, 16]
    assert torch.equal(data.train.images, again.train.images)
    assert data.fingerprint == again.fingerprint


def test_every_split_gets_an_image_of_each_class(tmp_path: Path) -> None:
    data = load(f"folder:{write_tree(tmp_path / 'data', {'a': 3, 'b': 30})}")
    assert [int((s.labels == 0).sum()) for s in (data.train, data.validation, data.test)] == [1, 1, 1]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = write_tree(tmp_path / "first", {"a": 5, "b": 5})
    second = write_tree(tmp_path / "elsewhere", {"a": 5, "b": 5})
    fingerprint = load(f"folder:{first}").fingerprint
    assert load(f"folder:{second}").fingerprint == fingerprint
    changed = np.array(Image.open(second / "a" / "000.png"))
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(second / "a" / "000.png")
    assert load(f"folder:{second}").fingerprint != fingerprint
    (first / "b").rename(first / "c")
    assert load(f"folder:{first}").fingerprint != fingerprint


def test_mean_and_std_are_those_of_train(mini: Dataset) -> None:
    channels = mini.train.images.transpose(0, 1).flatten(1).double() / 255
    assert mini.mean == pytest.approx(channels.mean(1).tolist(), abs=1e-12)
    assert mini.std == pytest.approx(channels.std(1, correction=0).tolist(), abs=1e-9)


# --- folders ------------------------------------------------------------------------------------------------


def test_train_and_test_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 10, "b": 10})
    write_tree(tmp_path / "test", {"a": 2, "b": 3})
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("no image")
    data = load(f"folder:{tmp_path}")
    assert data.test.labels.bincount().tolist() == [2, 3]
    assert len(data.train.labels) == 18
    assert data.test.images[0].permute(1, 2, 0).numpy().tolist() == pixels(0).tolist()


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 10, "b": 10})
    write_tree(tmp_path / "val", {"a": 2, "b": 3})
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("a", "b")
    assert data.test.labels.bincount().tolist() == [2, 3]
    write_tree(tmp_path / "test", {"a": 4, "b": 4})
    assert load(f"folder:{tmp_path}").test.labels.bincount().tolist() == [4, 4]


@pytest.mark.parametrize("below", ["", "a"])
@pytest.mark.parametrize(
    "names",
    [
        *(("train", "valid"), ("Train", "Test"), ("train",), ("val", "test"), ("Training", "Testing")),
        *(
            ("training_set", "test_set"),
            ("dev", "evalset"),
            ("train2017", "validation-images"),
            ("traintest",),
        ),
    ],
)
def test_a_split_is_no_class(tmp_path: Path, names: tuple[str, ...], below: str) -> None:
    for name in names:
        write_tree(tmp_path, {f"{name}/{below}": 5})
    with pytest.raises(DatasetError, match=rf"{min(names)} is the name of a split.*PATH/train/CLASS/ and"):
        load(f"folder:{tmp_path}")


def test_a_class_of_images_may_be_called_train(tmp_path: Path) -> None:
    counts = {"train": 5, "bus": 5, "test tube": 5, "contest": 5, "data": 5}
    assert load(f"folder:{write_tree(tmp_path, counts)}").class_names == tuple(sorted(counts))


def test_resize_takes_the_central_square(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", {"a": 5, "b": 5})
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 200
    Image.fromarray(wide).save(root / "a" / "wide.png")
    with pytest.raises(DatasetError, match=r"wide\.png is 48x16 pixels and .*000\.png is 8x8: give `resize`"):
        load(f"folder:{root}")
    data = load(f"folder:{root}", resize=16)
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert images.shape == (11, 3, 16, 16)
    assert (images == 200).flatten(1).all(1).sum() == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(b"junk"), "not a readable image"),
        (lambda file: file.write_bytes(file.read_bytes()[:-60]), "not a readable image"),
        (lambda file: file.write_bytes(b""), "not a readable image"),
    ],
)
def test_a_damaged_image_is_named(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    root = write_tree(tmp_path / "data", {"a": 5, "b": 5})
    spoil(root / "b" / "002.png")
    with pytest.raises(DatasetError, match=rf"b/002\.png: {message}.*replace the file"):
        load(f"folder:{root}")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 5}, "one class only"),
        ({}, "no class folders"),
        ({"a": 5, "b": 0}, "b: no images"),
        ({"a": 5, "b": 1}, "class 'b' has 1 image; it needs 3"),
        ({"a": 5, "b": 2}, "class 'b' has 2 images; it needs 3"),
    ],
)
def test_unfit_trees(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(DatasetError, match=message):
        load(f"folder:{write_tree(root, counts)}")


def test_other_unfit_trees(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 5, "b": 1})
    write_tree(tmp_path / "test", {"a": 2, "b": 2})
    with pytest.raises(DatasetError, match="class 'b' has 1 image; it needs 2"):
        load(f"folder:{tmp_path}")
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(DatasetError, match="the same class folders"):
        load(f"folder:{tmp_path}")
    with pytest.raises(DatasetError, match="not a folder"):
        load(f"folder:{tmp_path / 'train' / 'a' / '000.png'}")
    with pytest.raises(DatasetError, match="there is no"):
        load(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(DatasetError, match="8 pixels or more"):
        load(f"folder:{write_tree(tmp_path / 'small', {'a': 4, 'b': 4}, size=4)}")


def test_test_images_of_another_size(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 5, "b": 5}, size=8)
    write_tree(tmp_path / "test", {"a": 2, "b": 2}, size=16)
    with pytest.raises(DatasetError, match="train and test images differ in size: give `resize`"):
        load(f"folder:{tmp_path}")
    assert load(f"folder:{tmp_path}", resize=8).test.images.shape == (4, 3, 8, 8)


# --- pixels -------------------------------------------------------------------------------------------------

_RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
_HALF = np.dstack([_RAMP, _RAMP, _RAMP, np.where(np.eye(8) > 0, 0, 255).astype(np.uint8)])


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(_RAMP), _RAMP),
        (Image.fromarray(_RAMP.astype(np.uint16) * 257), _RAMP),
        (Image.fromarray(_RAMP.astype(np.uint16) * 257 + 100), _RAMP),
        (Image.fromarray(_RAMP).convert("P"), _RAMP),
        (Image.fromarray(_HALF), np.where(np.eye(8) > 0, 255, _RAMP)),
        (Image.fromarray(_HALF).convert("LA"), np.where(np.eye(8) > 0, 255, _RAMP)),
        (Image.fromarray(_RAMP > 100), np.where(_RAMP > 100, 255, 0)),
    ],
    ids=["grayscale", "16 bit", "16 bit rounded", "palette", "RGBA", "LA", "1 bit"],
)
def test_other_pixel_formats(tmp_path: Path, picture: Image.Image, expected: NDArray[Any]) -> None:
    root = write_tree(tmp_path / "data", {"a": 4, "b": 4})
    for file in (root / "a").iterdir():
        picture.save(file)
    data = load(f"folder:{root}")
    image = data.train.images[data.train.labels == 0][0]
    assert image.numpy().tolist() == [expected.tolist()] * 3


def test_no_picture_is_kept_beside_the_tensor(tmp_path: Path) -> None:
    """Arrays are traced and torch's memory is not: 300 decoded pictures would be 14 MB."""
    root = write_tree(tmp_path / "data", {"a": 150, "b": 150}, size=128)
    load(f"folder:{write_tree(tmp_path / 'few', {'a': 4, 'b': 4})}")  # what the first reading imports
    tracemalloc.start()
    data = load(f"folder:{root}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.train.images.numel() > 11e6
    assert peak < 4e6


def test_the_rows_that_are_kept_move_up_in_order() -> None:
    images = torch.arange(3000, dtype=torch.int16).view(3000, 1, 1, 1).repeat(1, 3, 32, 32)  # three chunks
    kept = torch.rand(3000, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = images[kept]
    moved = data_module._moved_up(images, kept)
    assert torch.equal(moved, expected)
    assert moved.data_ptr() == images.data_ptr()


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", {"a": 4, "b": 4})
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(root / "a" / "float.tiff")
    with pytest.raises(DatasetError, match=r"float\.tiff: .*floating-point"):
        load(f"folder:{root}")


# --- Parquet ------------------------------------------------------------------------------------------------


def test_parquet_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-0.parquet", 12, names=["cat", "dog"])
    write_parquet(tmp_path / "data" / "train-1.parquet", 8, names=["cat", "dog"], first=100)
    write_parquet(tmp_path / "data" / "test-0.parquet", 4, names=["cat", "dog"], first=200)
    data = load(f"parquet:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    assert len(data.train.labels) + len(data.validation.labels) == 20
    assert data.test.images[1].permute(1, 2, 0).numpy().tolist() == pixels(201).tolist()
    assert data.test.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("default/train/0000", "default/validation/0000", "default/test/0000"),
        ("default/partial-train/0000", "default/partial-validation/0000", "default/partial-test/0000"),
        ("plain_text/train-00000-of-00001", "plain_text/dev-0", "plain_text/testing-00000-of-00001"),
        ("Train", "valid", "my_test_2"),
        ("trainset", "ValidationSet/0", "eval_images"),
        ("trainval", "training/1", "testset"),
    ],
)
def test_a_parquet_file_tells_its_split_by_its_path(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    root = tmp_path / "test"  # what lies above PATH tells nothing
    write_parquet(root / f"{train}.parquet", 12)
    write_parquet(root / f"{validation}.parquet", 8, first=100)
    write_parquet(root / f"{test}.parquet", 4, first=200)
    data = load(f"parquet:{root}")
    assert len(data.train.labels) + len(data.validation.labels) == 20
    assert data.test.images[:, :, 0, 0].tolist() == [pixels(200 + n)[0, 0].tolist() for n in range(4)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("0000", "neither train nor test"),
        ("contest-0", "neither"),
        ("train/test-0", "both train and test"),
        ("traintest/0", "both"),
    ],
)
def test_a_parquet_file_whose_split_is_not_evident_is_named(tmp_path: Path, name: str, found: str) -> None:
    write_parquet(tmp_path / "train-0.parquet", 12)
    write_parquet(tmp_path / f"{name}.parquet", 4)
    with pytest.raises(DatasetError, match=rf"{name}\.parquet: .* tells {found}.*name the file or a"):
        load(f"parquet:{tmp_path}")


def test_one_parquet_file_of_both_splits_is_not_trained_on(tmp_path: Path) -> None:
    write_parquet(tmp_path / "traintest" / "0.parquet", 12)
    with pytest.raises(DatasetError, match="tells both train and test"):
        load(f"parquet:{tmp_path}")


def test_parquet_files_that_tell_no_split_are_one_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "0.parquet", 10)
    write_parquet(tmp_path / "b" / "1.parquet", 10, first=100)
    data = load(f"parquet:{tmp_path}")
    assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [16, 2, 2]


def test_parquet_file_without_names_and_test(tmp_path: Path) -> None:
    data = load(f"parquet:{write_parquet(tmp_path / 'some.parquet', 20)}")
    assert data.class_names == ("0", "1")
    assert len(data.test.labels) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"bytes": None, "path": "x.png"}] * 12}, "row 0: the image is missing"),
        ({"image": [None, *[{"bytes": png(pixels(0)), "path": ""}] * 11]}, "row 0: the image is missing"),
        ({"image": [{"bytes": b"junk", "path": "x.png"}] * 12}, r"row 0: not a readable image"),
        ({"image": [b"junk"] * 12}, "column image must be a struct"),
        ({"label": ["a"] * 12}, "column label must be integer"),
        ({"label": [-1] * 12}, "row 0: the label is -1"),
        ({"label": [None, *[0] * 11]}, "row 0: the label is None"),
        ({"label": [0] * 12}, "one class only"),
    ],
)
def test_unfit_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load(f"parquet:{write_parquet(tmp_path / 'x.parquet', 12, **columns)}")


@pytest.mark.parametrize("largest", [12, 2**31])
def test_labels_that_are_no_class_numbers_need_names(tmp_path: Path, largest: int) -> None:
    labels = [3, 7, 7, largest] * 3
    file = write_parquet(tmp_path / "x.parquet", 12, label=labels)
    with pytest.raises(
        DatasetError, match=f"largest label is {largest}, .* 3 different ones; .* from 0 to 2"
    ):
        load(f"parquet:{file}")
    if largest == 12:
        write_parquet(file, 12, label=labels, names=list("abcdefghijklm"))
        assert load(f"parquet:{file}").class_names[largest] == "m"


def test_other_unfit_parquet(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", 12, names=["only"])
    with pytest.raises(DatasetError, match="a label is 1, but the schema names 1 classes"):
        load(f"parquet:{file}")
    content = file.read_bytes()
    for damaged in (b"", content[:-8], content[:50]):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match="not a readable Parquet file"):
            load(f"parquet:{file}")
    pq.write_table(pa.table({"img": [1], "label": [0]}), file)
    with pytest.raises(DatasetError, match="needs columns image and label, it has img, label"):
        load(f"parquet:{file}")
    write_parquet(file, 12)
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(DatasetError, match="holds no rows"):
        load(f"parquet:{file}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no Parquet files to train on"):
        load(f"parquet:{tmp_path / 'empty'}")


def test_the_dataset_is_frozen(mini: Dataset) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        mini.name = "other"  # type: ignore[misc]
