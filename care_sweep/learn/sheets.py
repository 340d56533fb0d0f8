"""How do images lie on one sheet? Rows of tiles with captions; and the sheet that shows augmentations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from care_sweep.learn.data import Dataset
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import (
    Strength,
    ViewParameters,
    apply_views,
    draw_shared_views,
    draw_views,
    unit,
)

__all__ = ["Heading", "Tile", "draw_sheet", "one_of_each_class", "views_sheet"]

_TILE_PIXELS = 72
_GAP_PIXELS = 6
_CAPTION_PIXELS = 14
_HEADING_PIXELS = 22
_PLAIN = "#1a1a1a"
_NUM_IMAGES, _NUM_VIEWS = 4, 5


@dataclass(frozen=True)
class Tile:
    """One image (3, h, w), uint8 or float in [0, 1], with the colour of its frame and a word below it."""

    image: Tensor
    caption: str = ""
    frame: str = _PLAIN


@dataclass(frozen=True)
class Heading:
    """A line of text: what stands over which column."""

    texts: Mapping[int, str]


Row = Heading | Sequence[Tile | None]


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other, tiles in columns, None an empty place; captions where a row has any."""
    num_columns = max(len(row) for row in rows if not isinstance(row, Heading))
    heights = [_height(row) for row in rows]
    width = 2 * _GAP_PIXELS + num_columns * (_TILE_PIXELS + _GAP_PIXELS)
    sheet = Image.new("RGB", (width, _GAP_PIXELS + sum(heights)), "white")
    top = _GAP_PIXELS
    for row, height in zip(rows, heights, strict=True):
        if isinstance(row, Heading):
            _write(sheet, row, top)
        else:
            for column, tile in enumerate(row):
                if tile is not None:
                    _paste(sheet, tile, (_left(column), top))
        top += height
    return sheet


def _height(row: Row) -> int:
    if isinstance(row, Heading):
        return _HEADING_PIXELS
    captioned = any(tile is not None and tile.caption for tile in row)
    return _TILE_PIXELS + _GAP_PIXELS + (_CAPTION_PIXELS if captioned else 0)


def _left(column: int) -> int:
    """The first column stands apart from the others."""
    return _GAP_PIXELS * (1 + (column > 0)) + column * (_TILE_PIXELS + _GAP_PIXELS)


def _write(sheet: Image.Image, heading: Heading, top: int) -> None:
    for column, text in heading.texts.items():
        ImageDraw.Draw(sheet).text((_left(column), top + 4), text, fill=_PLAIN, font=_font(12))


def _paste(sheet: Image.Image, tile: Tile, place: tuple[int, int]) -> None:
    pixels = (unit(tile.image).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    side = _TILE_PIXELS - 4
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(sheet)
    x, y = place
    draw.rectangle((x, y, x + _TILE_PIXELS - 1, y + _TILE_PIXELS - 1), outline=tile.frame, width=2)
    sheet.paste(picture, (x + 2, y + 2))
    draw.text((x + 2, y + _TILE_PIXELS), tile.caption[:12], fill=tile.frame, font=_font(11))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def one_of_each_class(labels: Tensor, most: int) -> Tensor:
    """The row of the first image of each class, in the order of the classes, for at most `most` of them."""
    firsts = [int((labels == label).nonzero()[0]) for label in sorted(set(labels.tolist()))]
    return torch.tensor(firsts[:most])


# --- augmentations ------------------------------------------------------------------------------------------


def views_sheet(data: Dataset, strengths: Sequence[float], *, seed: int = 1) -> Image.Image:
    """What each `augmentation_strength` does to validation images, one image a row.

    After the image stand views with an augmentation of each image's own, as InfoNCE takes them; then, column
    by column, one augmentation that all images share, as L_equi takes them within a split (Algorithm 1). All
    strengths are drawn from the same numbers.

    Raises:
        ValueError: a strength is not in [0, 2].
    """
    images = data.validation.images[one_of_each_class(data.validation.labels, _NUM_IMAGES)]
    rows: list[Row] = []
    for strength in strengths:
        rows.append(Heading({0: f"strength {strength:g}: {_described(Strength.of(strength))}"}))
        shared_column = 2 + _NUM_VIEWS
        rows.append(Heading({0: "image", 1: "each image its own", shared_column: "one for all of a split"}))
        own = _views(images, strength, seed)
        shared = _shared_views(images, strength, seed)
        for row, image in enumerate(images):
            columns = [image, *(views[row] for views in own), None, *(views[row] for views in shared)]
            rows.append([None if column is None else Tile(column) for column in columns])
    return draw_sheet(rows)


def _views(images: Tensor, strength: float, seed: int) -> list[Tensor]:
    size = (int(images.shape[-2]), int(images.shape[-1]))
    source = generator(seed, "views")
    return [apply_views(images, draw_views(len(images), size, strength, source)) for _ in range(_NUM_VIEWS)]


def _shared_views(images: Tensor, strength: float, seed: int) -> list[Tensor]:
    size = (int(images.shape[-2]), int(images.shape[-1]))
    source = generator(seed, "shared views")

    def draw() -> ViewParameters:
        return draw_shared_views(len(images), 1, size, strength, source)

    return [apply_views(images, draw()) for _ in range(_NUM_VIEWS)]


def _described(amounts: Strength) -> str:
    return (
        f"crop {amounts.lowest_scale:.0%} to 100% of the area; jitter {amounts.jitter:.2g}, hue "
        f"{amounts.hue:.2g}, p {amounts.jitter_probability:g}; gray p {amounts.grayscale_probability:g}; "
        f"blur p {amounts.blur_probability:g}"
    )
