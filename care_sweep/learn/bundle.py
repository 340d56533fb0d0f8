"""How was the bundled cifar10-mini cut? `python -m care_sweep.learn.bundle PARQUET_DIR` cuts it again.

PARQUET_DIR holds CIFAR-10 as Hugging Face image Parquet with lossless WebP. 400 train and 100 test images of
each class are drawn with seed 0 and stay in the order and the encoding of the source; the same pyarrow writes
the same bytes.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from care_sweep.learn.data import BUNDLED_IMAGES

__all__ = ["cut_bundle"]

_NUM_CLASSES = 10
_IMAGES_A_CLASS = {"train": 400, "test": 100}


def cut_bundle(source: Path, target: Path) -> None:
    """Write `target`/train.parquet and `target`/test.parquet from the files of `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for part, images_a_class in _IMAGES_A_CLASS.items():
        table = pa.concat_tables([pq.ParquetFile(file).read() for file in sorted(source.glob(f"{part}-*"))])
        labels = torch.from_numpy(table["label"].to_numpy().copy())
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        chosen = [shuffled[labels[shuffled] == label][:images_a_class] for label in range(_NUM_CLASSES)]
        rows = torch.cat(chosen).sort().values
        pq.write_table(table.take(rows.numpy()), target / f"{part}.parquet", compression="none")


if __name__ == "__main__":
    cut_bundle(Path(sys.argv[1]), BUNDLED_IMAGES)
