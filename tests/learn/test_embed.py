"""A folder of images as Parquet: every kind of pixel, every row in its place, nothing half written."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from care_sweep.errors import DatasetError
from care_sweep.learn import embed as embed_module
from care_sweep.learn.checkpoint import LoadedEncoder, load
from care_sweep.learn.data import Dataset
from care_sweep.learn.embed import embed_folder


@pytest.fixture(scope="module")
def encoder(checkpoint_file: Path) -> LoadedEncoder:
    return load(checkpoint_file)


@pytest.fixture
def folder(tmp_path: Path, tiny: Dataset) -> Path:
    """Seven images in two folders, a file that is none, and a hidden one."""
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for number, image in enumerate(tiny.train.images[:7]):
        place = folder / "b" if number % 2 else folder
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("chunk", [2, 7, 256])
def test_rows_are_what_the_encoder_says(
    encoder: LoadedEncoder,
    folder: Path,
    tiny: Dataset,
    tmp_path: Path,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embed_module, "_CHUNK", chunk)
    told: list[tuple[int, int]] = []
    output = tmp_path / "out.parquet"
    assert embed_folder(encoder, folder, output, progress=lambda *at: told.append(at)) == 7
    assert told[-1] == (7, 7)
    table = pq.read_table(output)
    assert table["path"].to_pylist() == ["0.png", "2.png", "4.png", "6.png", "b/1.png", "b/3.png", "b/5.png"]
    images = tiny.train.images[[0, 2, 4, 6, 1, 3, 5]]
    features = torch.tensor(table["feature"].to_pylist())
    assert torch.allclose(features, encoder(images), atol=1e-5)
    assert torch.allclose(torch.tensor(table["embedding"].to_pylist()), encoder.project(images), atol=1e-5)
    classes = [encoder.class_names[number] for number in encoder.classify(images).tolist()]
    assert table["class_name"].to_pylist() == classes
    known = json.loads(table.schema.metadata[b"care-sweep"])
    assert known["manifest_sha256"] == encoder.manifest["manifest_sha256"]
    assert known["config"]["encoder"] == "resnet_tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.parquet"]


def _features(encoder: LoadedEncoder, folder: Path) -> torch.Tensor:
    output = folder.parent / "out.parquet"
    embed_folder(encoder, folder, output)
    return torch.tensor(pq.read_table(output)["feature"].to_pylist())


def test_grayscale_rgba_16_bits_and_palettes_are_what_they_show(
    encoder: LoadedEncoder, tmp_path: Path, tiny: Dataset
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    gray = tiny.train.images[0].float().mean(0).round().to(torch.uint8).numpy()
    plain = Image.fromarray(gray)
    plain.convert("RGB").save(folder / "0-rgb.png")
    plain.save(folder / "1-gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "2-gray16.png")
    plain.convert("RGBA").save(folder / "3-rgba.png")
    plain.convert("LA").save(folder / "4-la.png")
    plain.convert("P").save(folder / "5-palette.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "6-gray16.tif")
    plain.convert("CMYK").save(folder / "7-cmyk.tif")
    rows = _features(encoder, folder)
    assert len(rows) == 8
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-5)


def test_what_is_transparent_is_white(encoder: LoadedEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(folder / "clear.png")
    Image.new("RGB", (32, 32), "white").save(folder / "white.png")
    clear, white = _features(encoder, folder)
    assert torch.equal(clear, white)


def test_sizes_are_brought_to_that_of_the_training_images(encoder: LoadedEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for size in ((32, 32), (64, 64), (300, 100), (9, 80)):
        Image.new("RGB", size, (30, 90, 200)).save(folder / f"{size[0]}.png")
    rows = _features(encoder, folder)
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-4)
    embed_folder(encoder, folder, tmp_path / "large.parquet", size=(64, 64))
    large = torch.tensor(pq.read_table(tmp_path / "large.parquet")["feature"].to_pylist())
    assert not torch.allclose(large, rows)


def test_an_unreadable_image_is_named_and_nothing_is_left(
    encoder: LoadedEncoder, folder: Path, tmp_path: Path
) -> None:
    (folder / "z.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"z\.png: not a readable image"):
        embed_folder(encoder, folder, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_no_images(encoder: LoadedEncoder, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        embed_folder(encoder, tmp_path / "nothing", tmp_path / "out.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no images; their names end in \.bmp"):
        embed_folder(encoder, tmp_path / "empty", tmp_path / "out.parquet")


def test_a_checkpoint_that_does_not_tell_the_size(
    checkpoint_file: Path, folder: Path, tmp_path: Path
) -> None:
    older = load(checkpoint_file)
    assert older.image_size == (32, 32)
    older.image_size = None
    with pytest.raises(DatasetError, match="--resize"):
        embed_folder(older, folder, tmp_path / "out.parquet")
    assert embed_folder(older, folder, tmp_path / "out.parquet", size=(32, 32)) == 7
