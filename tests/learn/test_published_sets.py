"""Reading the sets that others published: as torchvision keeps them, and a hundred classes of ImageNet."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_images import load, pixels, write_tree
from PIL import Image

from care_sweep.errors import DatasetError
from care_sweep.learn.data import BUNDLED_IMAGES, load_dataset

PUBLISHED_CLASSES = (BUNDLED_IMAGES.parent / "imagenet100.txt").read_text().split()


# --- torchvision's sets -------------------------------------------------------------------------------------


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [n % 10 for n in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))


def test_cifar10_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    write_cifar10(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be read.*--download"):
        load_dataset("cifar10", download_directory=tmp_path)  # not the published files: the checksums differ
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    data = load_dataset("cifar10", download_directory=tmp_path)
    assert data.class_names[3] == "class 3"
    assert len(data.train.labels) + len(data.validation.labels) == 100
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert data.test.images.numpy().tolist() == rows.reshape(20, 3, 32, 32).tolist()
    assert load_dataset("cifar10", download_directory=tmp_path, resize=16).image_size == (16, 16)


def test_stl10_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
    for part in ("train", "test"):
        drawn.transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")
        (np.arange(20, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {n}" for n in range(10)))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    data = load_dataset("stl10", download_directory=tmp_path)
    assert data.image_size == (96, 96)
    assert data.test.images.numpy().tolist() == drawn.tolist()
    assert data.test.labels.tolist() == [n % 10 for n in range(20)]
    assert load_dataset("stl10", download_directory=tmp_path, resize=32).image_size == (32, 32)


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--download"):
        load_dataset("cifar10", download_directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- Flowers-102 --------------------------------------------------------------------------------------------

NUM_FLOWERS = 60


def write_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 images of 2 classes and mixed sizes, odd ones of class 0: 20 train, 20 val, 20 test."""
    scipy_io = pytest.importorskip("scipy.io")
    from torchvision import datasets

    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, NUM_FLOWERS + 1):
        size = (20, 30) if number % 3 else (26, 20)
        Image.new("RGB", size, (4 * number, 0, 0)).save(
            folder / "jpg" / f"image_{number:05d}.jpg", quality=100
        )
    identifiers = np.arange(1, NUM_FLOWERS + 1)
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": (2 - identifiers % 2)[None]})
    parts = zip(("trnid", "valid", "tstid"), np.split(identifiers[None], 3, axis=1), strict=True)
    scipy_io.savemat(folder / "setid.mat", dict(parts))
    monkeypatch.setattr(datasets.flowers102, "check_integrity", lambda *_: True)
    return root


def test_flowers_train_and_validation_are_our_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_flowers(tmp_path, monkeypatch)
    data = load_dataset("flowers102", download_directory=root, resize=16)
    assert (len(data.train.labels) + len(data.validation.labels), len(data.test.labels)) == (40, 20)
    assert data.class_names[:2] == ("pink primrose", "hard-leaved pocket orchid")
    assert len(data.class_names) == 102
    assert data.image_size == (16, 16)
    assert data.test.labels.tolist() == [0, 1] * 10
    reds = data.test.images[:, 0].float().mean((1, 2)).tolist()
    assert reds == pytest.approx([4 * number for number in range(41, 61)], abs=3)


def test_a_flower_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_flowers(tmp_path, monkeypatch)
    (root / "flowers-102" / "jpg" / "image_00007.jpg").unlink()
    with pytest.raises(DatasetError, match=r"image_00007\.jpg: not a readable image"):
        load_dataset("flowers102", download_directory=root, resize=16)


def test_flowers_need_scipy_and_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    (tmp_path / "flowers-102").mkdir()
    with pytest.raises(DatasetError, match=r"pip install care-sweep\[flowers\]"):
        load_dataset("flowers102", download_directory=tmp_path, resize=16, download=True)
    assert list((tmp_path / "flowers-102").iterdir()) == []  # nothing was downloaded for nothing


def test_flowers_without_a_size_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "flowers-102").mkdir()
    with pytest.raises(DatasetError, match="give `resize`"):
        load_dataset("flowers102", download_directory=tmp_path)


# --- ImageNet-100 -------------------------------------------------------------------------------------------


def write_imagenet(root: Path, names: list[str]) -> Path:
    for part, count in (("train", 3), ("val", 1)):
        write_tree(root / part, dict.fromkeys(names, count), size=10)
        Image.fromarray(pixels(7, 14)[:12]).save(root / part / names[0] / "000.JPEG")  # 14x12: mixed sizes
    return root


def listed(root: Path, text: str | bytes) -> Path:
    (root / "classes.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def test_the_published_hundred_are_as_published() -> None:
    """Tian et al., 'Contrastive Multiview Coding' (2020): WordNet numbers, the first and last as listed."""
    assert len(set(PUBLISHED_CLASSES)) == 100
    assert sorted(PUBLISHED_CLASSES) == PUBLISHED_CLASSES
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdecimal() for name in PUBLISHED_CLASSES)


def test_the_published_hundred_are_read_where_no_others_are_named(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path, [*PUBLISHED_CLASSES, "n00000001"])
    data = load(f"imagenet100:{root}", resize=8)
    assert data.class_names == tuple(PUBLISHED_CLASSES)
    assert data.test.labels.unique().tolist() == list(range(100))
    assert len(data.train.labels) + len(data.validation.labels) == 301
    assert data.image_size == (8, 8)


def test_a_list_of_classes_is_sorted(tmp_path: Path) -> None:
    root = listed(write_imagenet(tmp_path, ["a", "b", "c"]), "c\r\n\n a \n")
    data = load(f"imagenet100:{root}", resize=8)
    assert data.class_names == ("a", "c")
    assert data.test.labels.tolist() == [0, 0, 1]
    listed(root, "a\nc")
    again = load(f"imagenet100:{root}", resize=8)
    assert again.fingerprint == data.fingerprint


def test_class_folders_that_are_missing_are_counted(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path, PUBLISHED_CLASSES[2:])
    (root / "val" / PUBLISHED_CLASSES[50]).rename(root / "val" / "elsewhere")
    message = (
        rf"5 of 200 class folders are missing \(train/{PUBLISHED_CLASSES[0]}, train/{PUBLISHED_CLASSES[1]}, "
        rf"val/{PUBLISHED_CLASSES[0]}, \.\.\.\).*classes\.txt"
    )
    with pytest.raises(DatasetError, match=message):
        load(f"imagenet100:{root}", resize=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class; name one class folder a line, or remove the file"),
        (" \n\n", "names no class"),
        ("a\nb\na\n", "line 3: 'a' stands twice"),
        ("a\ntrain/b\n", "line 2: 'train/b' is no name of a folder"),
        ("a\n..\n", "line 2: '..' is no name of a folder"),
        ("a\\b", "line 1: .* is no name of a folder"),
        ("a\0b", "line 1: .* is no name of a folder"),
        (b"\xff\xfe", "cannot be read"),
        ("a\n", "one class only"),
    ],
)
def test_a_malformed_list_of_classes_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    root = listed(write_imagenet(tmp_path, ["a", "b"]), text)
    with pytest.raises(DatasetError, match=message):
        load(f"imagenet100:{root}", resize=8)


def test_imagenet_without_a_size_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="give `resize`"):
        load(f"imagenet100:{tmp_path}")


def test_a_folder_that_is_no_imagenet(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="200 of 200 class folders are missing"):
        load(f"imagenet100:{tmp_path}", resize=8)
