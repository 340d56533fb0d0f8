"""How do an encoder's weights get into a plain torchvision ResNet?

The state dict has torchvision's keys and nothing else. `fc` is the linear probe, with a row a class. With
stem `imagenet` all other layers are those of `resnet18()`; with stem `cifar` `conv1` is not: it is the 3x3
stem for small images, with no pooling after it. So

    network = torchvision.models.resnet18(num_classes=len(encoder.class_names))
    if encoder.config.stem == "cifar":
        network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    network.load_state_dict(to_torchvision(encoder), strict=True)

gives the probe's class scores for images normalised by the mean and deviation in the file's metadata.
"""

import io
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from care_sweep.errors import CheckpointError
from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.storage.durable import write_durably

__all__ = ["export_weights", "to_torchvision", "told_with_weights"]

_PICKLED = (".pt", ".pth")


def to_torchvision(encoder: LoadedEncoder) -> dict[str, Tensor]:
    """The state dict of torchvision's ResNet of that name, on the CPU: the encoder, and the probe as `fc`.

    Raises:
        CheckpointError: torchvision has no such network, as for resnet_tiny.
    """
    name = encoder.config.encoder
    if name not in ("resnet18", "resnet50"):
        raise CheckpointError(
            f"torchvision has no {name}, only resnet18 and resnet50; as .onnx any encoder can be exported"
        )
    state = dict(encoder.model.encoder.state_dict())
    state |= {f"fc.{key}": value for key, value in encoder.probe.state_dict().items()}
    return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}


def told_with_weights(encoder: LoadedEncoder) -> dict[str, str]:
    """What an exported file's metadata tells: network and stem, and as JSON mean, std and class names."""
    dataset, config = encoder.manifest["dataset"], encoder.config
    kept = {key: json.dumps(dataset[key]) for key in ("mean", "std", "class_names")}
    return {"network": config.encoder, "stem": config.stem, **kept}


def export_weights(encoder: LoadedEncoder, path: Path) -> None:
    """Write `to_torchvision` durably: as `.safetensors` with its stem and what images must be normalised by,
    or for `torch.load(path, weights_only=True)` as `.pt` or `.pth`. (`.onnx` is written by `onnx_export`.)

    Raises:
        CheckpointError: as `to_torchvision`, or the name ends in none of these.
    """
    state = to_torchvision(encoder)
    if path.suffix in _PICKLED:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    elif path.suffix == ".safetensors":
        content = safetensors.torch.save(state, told_with_weights(encoder))
    else:
        raise CheckpointError(f"{path}: the name must end in .safetensors, .pt, .pth or .onnx")
    write_durably(path, content)
