"""How does an encoder run where there is no torch? As an ONNX file that takes plain images.

    input   images      float32 (N, 3, H, W) in [0, 1], RGB; normalised inside
    output  features    float32 (N, F), before the projector: what kNN and probes read
    output  embeddings  float32 (N, 128) of length 1: what the training objective saw
    output  scores      float32 (N, classes) of the linear probe; the largest is the class

N is free, H and W are fixed. The file's metadata tells network, class names and, for the record, the mean and
deviation that are already inside. It tells nothing of the machine it was written on.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from care_sweep.errors import CheckpointError
from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.export import told_with_weights
from care_sweep.storage.durable import write_durably

__all__ = ["export_onnx"]

_OUTPUTS = ("features", "embeddings", "scores")


def export_onnx(encoder: LoadedEncoder, path: Path, *, size: tuple[int, int] | None = None) -> None:
    """Write an encoder, which must be on the CPU, durably as ONNX; ONNX's own checker has passed it.

    Args:
        size: height and width in pixels of the images it will take; by default those of the training images.

    Raises:
        CheckpointError: the checkpoint does not tell the size, or the packages that write ONNX are missing.
    """
    size = size or encoder.image_size
    if size is None:
        raise CheckpointError("this older checkpoint does not tell the size of its images: give it (--size)")
    try:
        import onnx  # noqa: PLC0415  (an extra, as the next)
        import onnxscript  # noqa: F401, PLC0415  (torch's exporter needs it)
    except ImportError as error:
        raise CheckpointError(
            f"{path}: ONNX is written with the package {error.name}, which is not installed; "
            "pip install care-sweep[onnx]"
        ) from error
    model = _converted(encoder, size)
    onnx.helper.set_model_props(model, told_with_weights(encoder))
    content: bytes = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(content, full_check=True)
    write_durably(path, content)


class _ThreeOutputs(nn.Module):
    """Everything that an encoder says of images, from one pass."""

    def __init__(self, encoder: LoadedEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.encoder.features_of(images)
        return features, normalize(self.encoder.model.projector(features)), self.encoder.probe(features)


def _converted(encoder: LoadedEncoder, size: tuple[int, int]) -> Any:
    """The `onnx.ModelProto`, without what names files of this machine."""
    example = torch.zeros(2, 3, *size)  # one image alone would be taken for a batch that is always of one
    program = torch.onnx.export(
        _ThreeOutputs(encoder).eval(),
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=_OUTPUTS,
        dynamic_shapes={"images": {0: torch.export.Dim("N")}},
        verbose=False,
    )
    assert program is not None  # it is None only where a file is written
    model = program.model_proto
    for part in (model.graph, *model.graph.node):
        part.ClearField("metadata_props")  # stack traces, with paths, of how the exporter came to it
    return model
