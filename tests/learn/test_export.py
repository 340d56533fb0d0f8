"""A plain torchvision ResNet with an encoder's weights: same keys, same answers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from care_sweep.errors import CheckpointError
from care_sweep.learn.checkpoint import LoadedEncoder, load, save
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import build_model
from care_sweep.learn.export import export_weights, to_torchvision
from care_sweep.learn.views import normalise
from care_sweep.spec import TrialConfig


@pytest.fixture(scope="module", params=["cifar", "imagenet"])
def encoder(
    request: pytest.FixtureRequest, tiny: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> LoadedEncoder:
    path = tmp_path_factory.mktemp("resnet18") / "checkpoint.tar"
    config = TrialConfig(encoder="resnet18", stem=request.param)
    model = build_model("resnet18", 0, config.stem)
    model.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    probe = nn.Linear(model.num_features, 10)
    nn.init.normal_(probe.weight, generator=torch.Generator().manual_seed(1))
    save(path, model=model, probe=probe, config=config, metrics={}, data=tiny)
    return load(path)


def plain_resnet(encoder: LoadedEncoder) -> nn.Module:
    """As the module's docstring says."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=len(encoder.class_names))
    if encoder.config.stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network.eval()


def test_keys_and_shapes_are_torchvisions_apart_from_probe_and_small_stem(encoder: LoadedEncoder) -> None:
    from torchvision.models import resnet18

    theirs, ours = resnet18().state_dict(), to_torchvision(encoder)
    assert list(ours) == list(theirs)
    differ = {name for name in theirs if theirs[name].shape != ours[name].shape}
    small_stem = {"conv1.weight"} if encoder.config.stem == "cifar" else set()
    assert differ == {"fc.weight", "fc.bias"} | small_stem
    assert all(ours[name].dtype == theirs[name].dtype for name in theirs)
    assert all(tensor.is_contiguous() for tensor in ours.values())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth"])
def test_a_plain_resnet_loads_strictly_and_answers_the_same(
    encoder: LoadedEncoder, tiny: Dataset, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    export_weights(encoder, path)
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    network = plain_resnet(encoder)
    network.load_state_dict(state, strict=True)
    images = tiny.validation.images[:6]
    with torch.no_grad():
        scores = network(normalise(images, tiny.mean, tiny.std))
        assert torch.allclose(scores, encoder.probe(encoder(images)), atol=1e-4)


def test_the_file_tells_how_to_normalise(encoder: LoadedEncoder, tiny: Dataset, tmp_path: Path) -> None:
    export_weights(encoder, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        told = file.metadata()
    assert (told["network"], told["stem"]) == ("resnet18", encoder.config.stem)
    assert tuple(json.loads(told["mean"])) == tiny.mean
    assert tuple(json.loads(told["std"])) == tiny.std
    assert tuple(json.loads(told["class_names"])) == tiny.class_names


def test_what_cannot_be_exported(encoder: LoadedEncoder, checkpoint_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="torchvision has no resnet_tiny"):
        to_torchvision(load(checkpoint_file))
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors, \.pt, \.pth or \.onnx"):
        export_weights(encoder, tmp_path / "weights.bin")
    assert list(tmp_path.iterdir()) == []
