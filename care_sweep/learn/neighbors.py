"""Which images does an encoder find alike? Sheets of images and their nearest neighbours."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.data import Dataset
from care_sweep.learn.evaluate import Features, Retrieval
from care_sweep.learn.sheets import Heading, Tile, draw_sheet, one_of_each_class
from care_sweep.learn.views import apply_views, hue_change

__all__ = ["draw_neighbors", "hue_sheet", "nearest", "neighbors_sheet"]

_CHUNK = 512
_RIGHT, _WRONG = "#2e7d32", "#c62828"
_KEPT, _NEW = "#9e9e9e", "#1565c0"


def nearest(encoder: LoadedEncoder, queries: Tensor, bank: Tensor, num_neighbors: int) -> Tensor:
    """Row numbers (Q, K) in `bank` of each query's nearest images by cosine similarity of features.

    Args:
        queries, bank: images (Q, 3, h, w) and (N, 3, h, w), uint8 or float in [0, 1].
        num_neighbors: K; a bank of fewer images is answered whole.
    """
    device = next(encoder.parameters()).device
    with torch.no_grad():
        bank_NF = torch.cat([encoder(chunk.to(device)) for chunk in torch.split(bank, _CHUNK)])
        return _nearest(encoder(queries.to(device)), bank_NF, num_neighbors)


def _nearest(queries_QF: Tensor, bank_NF: Tensor, num_neighbors: int) -> Tensor:
    similar_QN = normalize(queries_QF) @ normalize(bank_NF).T
    return similar_QN.topk(min(num_neighbors, len(bank_NF)), dim=1).indices.cpu()


def neighbors_sheet(
    encoder: LoadedEncoder,
    data: Dataset,
    *,
    num_queries: int = 8,
    num_neighbors: int = 8,
    features: Features | None = None,
) -> Image.Image:
    """One validation image a row, of different classes, then its nearest train images by features.

    A green frame is a neighbour of the query's class, a red one of another. `features`, if known, are this
    very encoder's of `data`.
    """
    rows = one_of_each_class(data.validation.labels, num_queries)
    if features is None:
        found = nearest(encoder, data.validation.images[rows], data.train.images, num_neighbors)
    else:
        queries = features.validation[rows.to(features.validation.device)]
        found = _nearest(queries, features.train, num_neighbors)
    return draw_sheet(_framed(data, rows, found))


def _framed(data: Dataset, rows: Tensor, found: Tensor) -> list[list[Tile]]:
    """A row for each query: its image, then its neighbours in frames that tell whose class is its own."""
    sheet = []
    for query, neighbors in zip(rows.tolist(), found.tolist(), strict=True):
        label = int(data.validation.labels[query])
        tiles = [Tile(data.validation.images[query], data.class_names[label])]
        for neighbor in neighbors:
            other = int(data.train.labels[neighbor])
            frame = _RIGHT if other == label else _WRONG
            tiles.append(Tile(data.train.images[neighbor], data.class_names[other], frame))
        sheet.append(tiles)
    return sheet


def hue_sheet(data: Dataset, found: Retrieval, *, num_queries: int = 4) -> Image.Image:
    """What becomes of the neighbours when a query's hue is moved: one row for each shift, nearest first.

    Blue frames are neighbours that the query as it is does not have.
    """
    rows: list[Heading | list[Tile]] = [Heading({0: "query", 1: "nearest by projected embedding"})]
    for query in one_of_each_class(data.validation.labels, num_queries).tolist():
        image, before = data.validation.images[query], found.before[query].tolist()
        changed = [
            (shift, after[query].tolist()) for shift, after in zip(found.shifts, found.after, strict=True)
        ]
        for shift, retrieved in [(0.0, before), *changed]:
            view = apply_views(image.unsqueeze(0), hue_change(1, shift, data.image_size))[0]
            tiles = [Tile(view, f"hue {shift:+g}" if shift else "as it is")]
            for row in retrieved:
                name = data.class_names[int(data.train.labels[row])]
                tiles.append(Tile(data.train.images[row], name, _KEPT if row in before else _NEW))
            rows.append(tiles)
    return draw_sheet(rows)


def draw_neighbors(
    encoder: LoadedEncoder, data: Dataset, path: Path, *, num_queries: int = 8, num_neighbors: int = 8
) -> None:
    """Write `neighbors_sheet` as PNG."""
    neighbors_sheet(encoder, data, num_queries=num_queries, num_neighbors=num_neighbors).save(path)
