"""How do image files, whatever their format, become bytes of one size in one tensor?"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from care_sweep.errors import DatasetError

__all__ = ["IMAGE_SUFFIXES", "Labelled", "find_images", "is_image", "read_images", "stack"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_NUM_THREADS = 4  # Pillow decodes outside the interpreter's lock
_CHUNK = 64  # images that a thread reads before it takes on others

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, 3, H, W) and class numbers int64 (N)."""

    images: Tensor
    labels: Tensor


# --- files --------------------------------------------------------------------------------------------------


def is_image(file: Path) -> bool:
    """Whether a path is a file with an image's suffix whose name does not begin with a dot."""
    return file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "." and file.is_file()


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted, without those whose name begins with a dot.

    Raises:
        DatasetError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    files = [file for file in sorted(folder.rglob("*")) if is_image(file)]
    if not files:
        raise DatasetError(f"{folder}: no images; their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


# --- many images --------------------------------------------------------------------------------------------


def stack(
    contents: Sequence[bytes | Path | Pixels], names: Sequence[str], labels: Sequence[int], resize: int | None
) -> Labelled:
    """The images in one tensor, which takes the memory of its own size and little more.

    Grayscale is repeated, 16 bits are scaled to 8, transparency is laid on white.

    Args:
        contents: encoded bytes, files, or RGB pixels (H, W, 3); at least one.
        names: what error messages call them.
        labels: their class numbers.
        resize: the largest central square of each image is scaled to this side, in pixels.

    Raises:
        DatasetError: one cannot be read, or without `resize` one has another size than the first.
    """

    def read(row: int) -> Pixels:
        picture = _decode(contents[row], names[row])
        return picture if resize is None else _fit(picture, (resize, resize))

    first = read(0)

    def read_alike(row: int) -> Pixels:
        picture = read(row)
        if picture.shape != first.shape:
            raise DatasetError(
                f"{names[row]} is {_size(picture)} pixels and {names[0]} is {_size(first)}: "
                "give `resize` (the side in pixels) to bring all images to one size"
            )
        return picture

    images = _filled(len(contents), (first.shape[0], first.shape[1]), read_alike)
    return Labelled(images, torch.tensor(labels, dtype=torch.int64))


def read_images(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """The images as uint8 (N, 3, height, width), the largest central part of that shape scaled to `size`.

    Raises:
        DatasetError: one of them is unreadable.
    """

    def read(row: int) -> Pixels:
        picture = _decode(files[row], str(files[row]))
        return picture if picture.shape[:2] == size else _fit(picture, size)

    return _filled(len(files), size, read)


def _filled(num_images: int, size: tuple[int, int], read: Callable[[int], Pixels]) -> Tensor:
    """The images that `read` gives, row by row, each laid into place by the thread that read it."""
    images = torch.empty((num_images, 3, *size), dtype=torch.uint8)
    pixels_N3HW = images.numpy()

    def fill(rows: range) -> None:
        for row in rows:
            pixels_N3HW[row] = read(row).transpose(2, 0, 1)

    chunks = [range(start, min(start + _CHUNK, num_images)) for start in range(0, num_images, _CHUNK)]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(fill, chunks))  # raises what a thread raised, the first chunk's first
    return images


def _size(picture: Pixels) -> str:
    height, width, _ = picture.shape
    return f"{width}x{height}"


# --- one image ----------------------------------------------------------------------------------------------


def _decode(content: bytes | Path | Pixels, name: str) -> Pixels:
    """The image as (H, W, 3) RGB."""
    if isinstance(content, np.ndarray):
        return content
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            return np.asarray(_to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{name}: not a readable image ({error}); replace the file or take it out of the dataset"
        ) from error


def _fit(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """The largest central part of the shape of `size` (height, width), scaled to it."""
    height, width = size
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("more than 16 bits a pixel; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")
