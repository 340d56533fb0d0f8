"""What an encoder finds alike: the nearest images, and the sheet that shows them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from care_sweep.learn.checkpoint import LoadedEncoder, load
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.evaluate import Features, Retrieval, extract_features
from care_sweep.learn.neighbors import draw_neighbors, hue_sheet, nearest, neighbors_sheet
from care_sweep.learn.train import train
from care_sweep.spec import TrialConfig


@pytest.fixture(scope="module")
def encoder(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    directory = tmp_path_factory.mktemp("trial")
    config = TrialConfig(encoder="resnet_tiny", epochs=1, batch_size=32, num_splits=4, probe_epochs=1)
    train(config, tiny, lambda measurement: None, directory=directory)
    return load(directory / "checkpoint.tar")


def test_neighbors_are_ordered_by_cosine_similarity(encoder: LoadedEncoder, tiny: Dataset) -> None:
    bank, queries = tiny.train.images, tiny.validation.images[:3]
    found = nearest(encoder, queries, bank, len(bank))
    with torch.no_grad():
        similar = cosine_similarity(encoder(queries)[:, None], encoder(bank)[None], dim=-1)
    ordered = similar.gather(1, found)
    assert (ordered[:, :-1] >= ordered[:, 1:] - 1e-6).all()
    assert [sorted(row) for row in found.tolist()] == [list(range(len(bank)))] * 3


def test_a_small_bank_is_answered_whole(encoder: LoadedEncoder, tiny: Dataset) -> None:
    few = dataclasses.replace(tiny, train=Split(tiny.train.images[:5], tiny.train.labels[:5]))
    assert nearest(encoder, tiny.validation.images[:2], few.train.images, 8).shape == (2, 5)
    width, _ = neighbors_sheet(encoder, few, num_neighbors=8).size
    assert width == neighbors_sheet(encoder, tiny, num_neighbors=5).size[0]


def test_an_image_is_its_own_nearest(encoder: LoadedEncoder, tiny: Dataset) -> None:
    found = nearest(encoder, tiny.train.images[:5], tiny.train.images, 1)
    assert found.flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_sheet_has_a_row_a_query_and_a_column_a_neighbor(
    encoder: LoadedEncoder, tiny: Dataset, tmp_path: Path
) -> None:
    sizes = []
    for num_queries, num_neighbors in ((2, 3), (3, 3), (2, 4)):
        draw_neighbors(
            encoder, tiny, tmp_path / "sheet.png", num_queries=num_queries, num_neighbors=num_neighbors
        )
        with Image.open(tmp_path / "sheet.png") as sheet:
            sizes.append(sheet.size)
            assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 1000, "there are pictures on it"
    (width, height), (same_width, taller), (wider, same_height) = sizes
    assert (same_width, same_height) == (width, height)
    assert (taller > height, wider > width) == (True, True)


GREEN, RED, BLUE, GRAY = (46, 125, 50), (198, 40, 40), (21, 101, 192), (158, 158, 158)


def frames(sheet: Image.Image, row: int, columns: int, *, top: int = 6) -> list[tuple[int, ...]]:
    """The colours of the tiles' upper left corners after the query's."""
    pixels = np.asarray(sheet)
    return [tuple(pixels[top + 92 * row, 12 + 78 * column].tolist()) for column in range(1, columns + 1)]


def test_green_frames_are_of_the_querys_class_and_red_ones_are_not(
    encoder: LoadedEncoder, tiny: Dataset
) -> None:
    """Features are one angle each, so that it is known which train images are nearest to each query."""

    def at(*degrees: float) -> torch.Tensor:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], 1)

    data = dataclasses.replace(
        tiny,
        train=Split(tiny.train.images[:5], torch.tensor([0, 1, 0, 1, 1])),
        validation=Split(tiny.validation.images[:2], torch.tensor([0, 1])),
    )
    features = Features(at(1, 2, 3, 91, 94), data.train.labels, at(0, 90), data.validation.labels)
    sheet = neighbors_sheet(encoder, data, num_queries=2, num_neighbors=3, features=features)
    assert frames(sheet, 0, 3) == [GREEN, RED, GREEN]
    assert frames(sheet, 1, 3) == [GREEN, GREEN, RED]


def test_blue_frames_are_new_neighbours_and_gray_ones_are_not(tiny: Dataset) -> None:
    data = dataclasses.replace(tiny, validation=Split(tiny.validation.images[:1], torch.tensor([0])))
    before, after = torch.tensor([[4, 5, 6]]), torch.tensor([[6, 7, 4]])
    sheet = hue_sheet(data, Retrieval((0.1,), before, (after,), change=(1 / 3,), following=(0.0,)))
    assert frames(sheet, 0, 3, top=28) == [GRAY, GRAY, GRAY]
    assert frames(sheet, 1, 3, top=28) == [GRAY, BLUE, GRAY]


def test_features_already_known_give_the_same_sheet(encoder: LoadedEncoder, tiny: Dataset) -> None:
    known = extract_features(encoder.model, tiny, torch.device("cpu"))
    sheets = [neighbors_sheet(encoder, tiny, num_queries=3, features=features) for features in (None, known)]
    assert np.array_equal(*map(np.asarray, sheets))
