"""Which images does an encoder find alike? A sheet of images and their nearest neighbours."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.data import Dataset

__all__ = ["draw_neighbors", "nearest"]

_TILE = 72  # pixels an image takes
_GAP = 6
_CAPTION = 14
_CHUNK = 512
_RIGHT, _WRONG, _QUERY = "#2e7d32", "#c62828", "#1a1a1a"


def nearest(encoder: LoadedEncoder, queries: Tensor, bank: Tensor, num_neighbors: int) -> Tensor:
    """Row numbers (Q, K) in `bank` of each query's nearest images by cosine similarity of features.

    Args:
        queries, bank: images (Q, 3, h, w) and (N, 3, h, w), uint8 or float in [0, 1].
        num_neighbors: K, at most N.
    """
    with torch.no_grad():
        bank_NF = torch.cat([normalize(encoder(chunk)) for chunk in torch.split(bank, _CHUNK)])
        queries_QF = normalize(encoder(queries))
    return (queries_QF @ bank_NF.T).topk(num_neighbors, dim=1).indices


def draw_neighbors(
    encoder: LoadedEncoder, data: Dataset, path: Path, *, num_queries: int = 8, num_neighbors: int = 8
) -> None:
    """Write a PNG: one validation image a row, of different classes, then its nearest train images.

    A green frame is a neighbour of the query's class, a red one of another.
    """
    rows = _one_of_each_class(data.validation.labels, num_queries)
    found = nearest(encoder, data.validation.images[rows], data.train.images, num_neighbors)
    cell_width, cell_height = _TILE + _GAP, _TILE + _GAP + _CAPTION
    size = (_GAP + (1 + num_neighbors) * cell_width + _GAP, _GAP + len(rows) * cell_height)
    sheet = Image.new("RGB", size, "white")
    for y, (query, neighbors) in enumerate(zip(rows.tolist(), found.tolist(), strict=True)):
        label = int(data.validation.labels[query])
        top = _GAP + y * cell_height
        name = data.class_names[label]
        _paste(sheet, data.validation.images[query], (_GAP, top), _QUERY, name)
        for x, neighbor in enumerate(neighbors):
            other = int(data.train.labels[neighbor])
            frame = _RIGHT if other == label else _WRONG
            place = (2 * _GAP + (1 + x) * cell_width, top)
            _paste(sheet, data.train.images[neighbor], place, frame, data.class_names[other])
    sheet.save(path)


def _one_of_each_class(labels: Tensor, num_queries: int) -> Tensor:
    firsts = [int((labels == label).nonzero()[0]) for label in sorted(set(labels.tolist()))]
    return torch.tensor(firsts[:num_queries])


def _paste(sheet: Image.Image, image: Tensor, place: tuple[int, int], frame: str, caption: str) -> None:
    tile = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (_TILE - 4, _TILE - 4), Image.Resampling.LANCZOS
    )
    draw = ImageDraw.Draw(sheet)
    x, y = place
    draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), outline=frame, width=2)
    sheet.paste(tile, (x + 2, y + 2))
    draw.text((x + 2, y + _TILE + 1), caption[:12], fill=frame)
