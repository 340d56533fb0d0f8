"""How does the state of a trial in training lie in a file, so that no damage to it goes unseen?

A line that names the format, the SHA-256 of all that follows, then what `torch.save` writes. The sum is
checked before anything is read; what is read is never unpickled into more than tensors and plain values.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from care_sweep.errors import StateDamaged
from care_sweep.storage.durable import write_durably

__all__ = ["check_optimizer", "check_tensors", "opened", "sealed", "written_beside"]

_HEADER = b"care-sweep training state 2\n"  # 1 had neither header nor sum
_SUM_BYTES = hashlib.sha256().digest_size


def sealed(state: Mapping[str, Any]) -> bytes:
    """The bytes of a state's file."""
    start = len(_HEADER) + _SUM_BYTES
    buffer = io.BytesIO()
    buffer.write(bytes(start))
    torch.save(dict(state), buffer)
    with buffer.getbuffer() as content:
        content[:start] = _HEADER + hashlib.sha256(content[start:]).digest()
    return buffer.getvalue()


@contextmanager
def written_beside(path: Path, state: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Write a state durably, by a thread, while the body of the `with` runs; it is there once that is left.

    What is on a GPU is copied to the host first, in the order of the current stream and without waiting for
    it; what is on the CPU is not copied, and the body must leave it as it is.

    Raises:
        OSError: it could not be written, and the body did not fail.
    """
    on_host = {name: _on_host(value) for name, value in state.items()}
    copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def write() -> None:
        if copied is not None:
            copied.synchronize()
        write_durably(path, sealed(on_host))

    with ThreadPoolExecutor(1, thread_name_prefix="training state") as writer:
        written = writer.submit(write)
        yield
    written.result()


def _on_host(value: Any) -> Any:
    """The same in tensors of the host; copies from a GPU are asked for, not waited for."""
    if isinstance(value, Tensor) and value.is_cuda:
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _on_host(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on_host(one) for one in value]
    return value


def opened(path: Path, device: torch.device) -> dict[str, Any]:
    """What `sealed` was given, its tensors on the device.

    Raises:
        StateDamaged: the file is missing or damaged, or no state that this care-sweep wrote.
    """
    try:
        found = path.read_bytes()
    except OSError as error:
        raise StateDamaged(f"{path}: no readable training state ({error.strerror}); train anew") from error
    header, rest = found[: len(_HEADER)], found[len(_HEADER) :]
    if header != _HEADER:
        raise StateDamaged(
            f"{path}: no readable training state: damaged, or written by an older care-sweep; train anew"
        )
    if hashlib.sha256(rest[_SUM_BYTES:]).digest() != rest[:_SUM_BYTES]:
        raise StateDamaged(f"{path}: no readable training state: its SHA-256 does not fit; train anew")
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(rest[_SUM_BYTES:]), map_location=device, weights_only=True
        )
    except Exception as error:  # what torch.load raises for a file of another kind is not documented
        raise StateDamaged(f"{path}: no readable training state ({error}); train anew") from error
    return state


def check_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse what `load_state_dict` would load in part only.

    Raises:
        ValueError: another name, shape or type.
    """
    if own.keys() != found.keys():
        raise ValueError(f"other tensors: {', '.join(sorted(own.keys() ^ found.keys()))}")
    for name, tensor in own.items():
        if (tensor.shape, tensor.dtype) != (found[name].shape, found[name].dtype):
            raise ValueError(f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}")


def check_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Any]) -> None:
    """Refuse moments that do not fit their parameters; an optimiser's `load_state_dict` does not look.

    Raises:
        ValueError: another number of groups or parameters, or moments of another shape.
    """
    numbers = [group["params"] for group in found["param_groups"]]
    parameters = [group["params"] for group in optimizer.param_groups]
    if list(map(len, numbers)) != list(map(len, parameters)):
        raise ValueError("an optimiser of other parameters")
    for its_numbers, its_parameters in zip(numbers, parameters, strict=True):
        for number, parameter in zip(its_numbers, its_parameters, strict=True):
            for name, value in found["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"the optimiser's {name} is {tuple(value.shape)}")
