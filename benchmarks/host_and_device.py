"""How often does a step start something on the GPU, and how often does the host wait for it?"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["HostAndDevice", "is_launch", "look_at"]

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")  # with ExC, Ex and the like behind
_SYNCHRONISING = "synchronizing CUDA operation"  # in torch's warning


@dataclass(frozen=True)
class HostAndDevice:
    """Counted over some steps, and divided by how many they were.

    Attributes:
        launches: kernels and graphs started.
        waits: operations that synchronise, as torch knows them; those of a whole epoch are among them.
    """

    launches: float
    waits: float


def look_at(few_steps: Callable[[], int]) -> HostAndDevice:
    """What some steps on the GPU do; `few_steps` answers how many it took.

    Raises:
        RuntimeError: the profiler saw nothing, which is no finding.
    """
    num_waits, num_steps = _waits(few_steps)
    launches = _launches(few_steps)
    return HostAndDevice(launches / num_steps, num_waits / num_steps)


def _waits(few_steps: Callable[[], int]) -> tuple[int, int]:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            num_steps = few_steps()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(_SYNCHRONISING in str(warning.message) for warning in caught), num_steps


def _launches(few_steps: Callable[[], int]) -> int:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        few_steps()
        torch.cuda.synchronize()
    num_launches = sum(event.count for event in profiler.key_averages() if is_launch(event.key))
    if num_launches == 0:
        raise RuntimeError("the profiler saw no launch: is CUPTI there, and is no other profiler at work?")
    return num_launches


def is_launch(name: str) -> bool:
    """Whether an event of the runtime or the driver starts a kernel or a graph."""
    return name.startswith(_LAUNCHES)
