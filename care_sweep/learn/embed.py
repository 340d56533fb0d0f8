"""What does an encoder make of a folder of images? A Parquet file with a row an image, written in chunks."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from care_sweep.errors import DatasetError
from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.encoder import EMBEDDING_DIMENSIONS
from care_sweep.learn.pixels import find_images, read_images

__all__ = ["embed_folder"]

_CHUNK = 256


def embed_folder(
    encoder: LoadedEncoder,
    folder: Path,
    output: Path,
    *,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write one row for each image below `folder`, in the order of their paths; the number of rows.

    Columns: `path` (below the folder), `feature` (F float32, what probes read), `embedding` (128 float32 of
    length 1, what the objective saw) and `class_name` (the probe's). The schema's metadata tells the encoder.
    Memory holds 256 images at a time, and nothing has the file's name before all of it is written.

    Args:
        size: height and width in pixels that images are brought to; by default those of the training images.
        progress: called with the number of images done, and of all, after each chunk.

    Raises:
        DatasetError: no images, an unreadable one, or a checkpoint that does not tell the size.
    """
    size = size or encoder.image_size
    if size is None:
        raise DatasetError("this older checkpoint does not tell the size of its images: give it (--resize)")
    files = find_images(folder)
    partial = output.parent / f".{secrets.token_hex(6)}.part"
    try:
        with pq.ParquetWriter(partial, _schema(encoder)) as writer:
            for start in range(0, len(files), _CHUNK):
                chunk = files[start : start + _CHUNK]
                writer.write_table(_table(encoder, folder, chunk, read_images(chunk, size)))
                progress(start + len(chunk), len(files))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return len(files)


def _schema(encoder: LoadedEncoder) -> pa.Schema:
    known = {
        "manifest_sha256": encoder.manifest["manifest_sha256"],
        "config": encoder.config.model_dump(mode="json"),
        "class_names": list(encoder.class_names),
    }
    fields = [
        ("path", pa.string()),
        ("feature", pa.list_(pa.float32(), encoder.model.num_features)),
        ("embedding", pa.list_(pa.float32(), EMBEDDING_DIMENSIONS)),
        ("class_name", pa.string()),
    ]
    return pa.schema(fields, metadata={"care-sweep": json.dumps(known)})


def _table(encoder: LoadedEncoder, folder: Path, files: list[Path], images: Tensor) -> pa.Table:
    device = next(encoder.parameters()).device
    with torch.no_grad():
        features = encoder(images.to(device))
        embeddings = torch.nn.functional.normalize(encoder.model.projector(features))
        classes = encoder.probe(features).argmax(1).tolist()
    return pa.table(
        {
            "path": [file.relative_to(folder).as_posix() for file in files],
            "feature": _column(features),
            "embedding": _column(embeddings),
            "class_name": [encoder.class_names[number] for number in classes],
        },
        schema=_schema(encoder),
    )


def _column(rows: Tensor) -> pa.FixedSizeListArray:
    values = rows.float().cpu().numpy().astype(np.float32, copy=False).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), rows.shape[1])
