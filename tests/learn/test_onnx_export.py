"""An encoder as ONNX: what onnxruntime answers is what the encoder answers, and the file tells what it is."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from care_sweep.errors import CheckpointError
from care_sweep.learn.checkpoint import LoadedEncoder, load, save
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import EncoderName, build_model
from care_sweep.learn.onnx_export import export_onnx
from care_sweep.spec import TrialConfig

# The exporter of torch 2.11 asks in a way that torch 2.11 itself has deprecated; later ones do not.
pytestmark = pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")


def trained(name: EncoderName, data: Dataset, path: Path) -> LoadedEncoder:
    """An encoder whose batch norms and probe are not those of a fresh one."""
    model = build_model(name, 0)
    model.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    probe = nn.Linear(model.num_features, len(data.class_names))
    nn.init.normal_(probe.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    save(path, model=model, probe=probe, config=TrialConfig(encoder=name), metrics={}, data=data)
    return load(path)


@pytest.mark.parametrize(
    "name", ["resnet_tiny", "resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_onnxruntime_answers_as_the_encoder(name: EncoderName, tiny: Dataset, tmp_path: Path) -> None:
    runtime = _packages()
    encoder = trained(name, tiny, tmp_path / "checkpoint.tar")
    export_onnx(encoder, tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    (given,), told = session.get_inputs(), [output.name for output in session.get_outputs()]
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["N", 3, 32, 32])
    assert told == ["features", "embeddings", "scores"]
    for size in (1, 6):
        images = tiny.validation.images[:size].float() / 255
        answers = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        features = encoder(images)
        for ours, theirs in zip(
            (features, encoder.project(images), encoder.probe(features)), answers, strict=True
        ):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_the_file_tells_what_it_is_and_nothing_of_this_machine(
    checkpoint_file: Path, tiny: Dataset, tmp_path: Path
) -> None:
    runtime = _packages()
    for name in ("one.onnx", "two.onnx"):
        export_onnx(load(checkpoint_file), tmp_path / name, size=(24, 40))
    content = (tmp_path / "one.onnx").read_bytes()
    assert content == (tmp_path / "two.onnx").read_bytes()
    for place in (Path(torch.__file__).parent, Path(export_onnx.__code__.co_filename).parent, Path.home()):
        assert str(place).encode() not in content
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", 3, 24, 40]
    told = session.get_modelmeta().custom_metadata_map
    assert told["network"] == "resnet_tiny"
    assert tuple(json.loads(told["class_names"])) == tiny.class_names
    assert tuple(json.loads(told["mean"])) == tiny.mean
    assert tuple(json.loads(told["std"])) == tiny.std


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("onnx", "onnxscript"):
        stand_in = None if name == package else type(sys)(name)  # None: its import fails
        monkeypatch.setitem(sys.modules, name, stand_in)
    with pytest.raises(CheckpointError, match=rf"package {package}, .*pip install care-sweep\[onnx\]"):
        export_onnx(load(checkpoint_file), tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_tell_its_size(checkpoint_file: Path, tmp_path: Path) -> None:
    encoder = load(checkpoint_file)
    encoder.image_size = None
    with pytest.raises(CheckpointError, match="does not tell the size of its images: give it"):
        export_onnx(encoder, tmp_path / "encoder.onnx")


def _packages() -> Any:
    """onnxruntime, where it and what writes ONNX are installed."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")
