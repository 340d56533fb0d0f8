"""Hyperparameter sweeps for CARE, from an HTTP POST to a checkpoint one can trust.

Attributes load when they are first used, so that the service, which imports this package, never loads torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from care_sweep.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from care_sweep.loading import load  # noqa: PLC0415  (torch loads only when it is asked for)

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
