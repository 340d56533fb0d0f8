"""What an encoder finds alike: the nearest images, and the sheet that shows them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from care_sweep.learn.checkpoint import LoadedEncoder, load
from care_sweep.learn.data import Dataset
from care_sweep.learn.neighbors import draw_neighbors, nearest
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
