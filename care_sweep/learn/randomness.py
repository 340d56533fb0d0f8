"""Which random numbers does each part of a trial draw?

Every draw of a trial is a function of (seed, stream, epoch): nothing has to be saved to go on after an
interruption, and a part that draws more or less does not shift the numbers of another.
"""

import hashlib
from typing import Literal

import torch

__all__ = ["Stream", "generator", "stream_seed"]

Stream = Literal[
    "initialisation",
    "permutation",
    "views",
    "shared views",
    "queue",
    "probe",
    "measure",
    "validation cut",
    "test cut",
]


def stream_seed(seed: int, stream: Stream, epoch: int = 0) -> int:
    """A 63-bit seed of its own for each (seed, stream, epoch), the same on every machine."""
    digest = hashlib.sha256(f"care-sweep/{stream}/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: Stream, epoch: int = 0) -> torch.Generator:
    """A generator on the host: a trial draws the same numbers whatever device it trains on."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, epoch))
