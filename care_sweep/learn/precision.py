"""What does a trial compute in: bfloat16, or float32 as IEEE 754 has it?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from care_sweep.spec import TrialConfig

__all__ = ["ieee_convolutions", "precision_of"]


def precision_of(config: TrialConfig, device: torch.device) -> torch.dtype:
    """What a trial's encoders compute in on a device."""
    if config.precision != "auto":
        return torch.float32 if config.precision == "float32" else torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


@contextmanager
def ieee_convolutions() -> Iterator[None]:
    """Have a GPU compute float32 convolutions as such; torch's default is TF32, which has 11 of the 24 bits.

    That is a setting of the process, which is put back as it was. A CUDA graph keeps what was set as it was
    captured. Convolutions of bfloat16 are not touched, and matrix products are IEEE's unless torch was told
    otherwise. Within, `torch.backends.cudnn.allow_tf32`, the older name, may not be read.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch does not declare it
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
