"""Images drawn from a number, on disk as class folders, and the reading of them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from care_sweep.learn.data import Dataset, load_dataset


def load(name: str, **options: Any) -> Dataset:
    return load_dataset(name, download_directory=Path("nowhere"), **options)


def pixels(number: int, size: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_tree(root: Path, counts: Mapping[str, int], size: int = 8) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pixels(1000 * label + number, size)).save(root / name / f"{number:03d}.png")
    return root


def png(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
