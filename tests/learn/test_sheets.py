"""The sheet of augmentations, and how tiles lie on a sheet."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.sheets import Heading, Tile, draw_sheet, views_sheet


def test_tiles_lie_in_columns_and_headings_above_them() -> None:
    white = torch.ones(3, 8, 8)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    bare = draw_sheet([[Tile(white), None, Tile(red)]])
    pixels = np.asarray(bare)
    assert (pixels[6 + 36, 12 + 2 * 78 + 36] == (255, 0, 0)).all()
    assert (pixels[6 + 36, 12 + 78 + 36] == 255).all()
    captioned = draw_sheet([Heading({0: "one"}), [Tile(white, "word"), Tile(red)], [Tile(red)]])
    assert captioned.height > 2 * bare.height
    assert captioned.width < bare.width


def test_each_strength_has_its_rows_and_the_seed_its_draws(mini: Dataset) -> None:
    one, two, other = (views_sheet(mini, s, seed=seed) for s, seed in (([1], 0), ([1, 0.5], 0), ([1], 2)))
    assert two.height > 1.9 * one.height
    assert two.width == one.width
    assert np.array_equal(np.asarray(one), np.asarray(views_sheet(mini, [1], seed=0)))
    assert not np.array_equal(np.asarray(one), np.asarray(other))


def test_strength_0_shows_the_image_itself(mini: Dataset) -> None:
    """At most flipped: a column of shared views shows each image as it is, or each mirrored."""
    pixels = np.asarray(views_sheet(mini, [0.0]))
    top = 6 + 2 * 22
    tiles = [
        np.stack([pixels[top + 78 * row :, left:][2:70, 2:70] for row in range(4)])
        for left in (6, *(12 + 78 * column for column in range(7, 12)))
    ]
    for shared in tiles[1:]:
        assert (
            np.array_equal(shared, tiles[0]) or np.abs(shared - tiles[0][:, :, ::-1].astype(int)).mean() < 2
        )


def test_a_strength_outside_is_refused(mini: Dataset) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 2\]"):
        views_sheet(mini, [2.5])


def test_the_sheet_can_be_saved(mini: Dataset, tmp_path: Path) -> None:
    views_sheet(mini, [1.0]).save(tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_each_image_has_its_own_augmentation_left_and_all_have_one_right(mini: Dataset) -> None:
    """Four times the same image: one augmentation shows the same four times, one for each does not."""
    first = mini.validation.images[:1].expand(4, -1, -1, -1)
    same = dataclasses.replace(mini, validation=Split(first, torch.arange(4)))
    pixels = np.asarray(views_sheet(same, [1.0]))
    top = 6 + 2 * 22

    def column(number: int) -> list[bytes]:
        left = 12 + 78 * number
        return [pixels[top + 78 * row :, left:][:72, :72].tobytes() for row in range(4)]

    assert [len(set(column(number))) for number in range(1, 6)] == [4] * 5, "each image its own"
    assert [len(set(column(number))) for number in range(7, 12)] == [1] * 5, "one for all of a split"
    assert len({column(number)[0] for number in range(7, 12)}) == 5
