"""Is float32 what it says? cuDNN is told so by a setting of the process, which is put back."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from care_sweep.learn.checkpoint import load
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.evaluate import embedding_metrics_of_batches, encode
from care_sweep.learn.precision import ieee_convolutions
from care_sweep.learn.train import _Trial
from care_sweep.spec import TrialConfig

CPU = torch.device("cpu")


def setting() -> str:
    return str(torch.backends.cudnn.conv.fp32_precision)


@pytest.fixture(params=["tf32", "ieee"])
def found(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the caller had set."""
    before, torch.backends.cudnn.conv.fp32_precision = setting(), request.param
    yield request.param
    torch.backends.cudnn.conv.fp32_precision = before


def told(model: CareModel) -> set[str]:
    """What is set whenever the encoder goes forward or backward."""
    seen: set[str] = set()
    model.encoder.register_forward_hook(lambda *_: seen.add(setting()))
    next(model.encoder.parameters()).register_hook(lambda _: seen.add(setting() + " backward"))
    return seen


def test_the_setting_is_put_back(found: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ieee_convolutions():
            assert setting() == "ieee"
        with pytest.raises(ZeroDivisionError), ieee_convolutions():
            1 / 0  # noqa: B018
    assert setting() == found


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_steps_are_taken_in_it(config: TrialConfig, tiny: Dataset, found: str, compiled: str) -> None:
    trial = _Trial(config.model_copy(update={"compile": compiled}), tiny, CPU)
    seen = told(trial.model)
    with torch.compiler.set_stance("force_eager"):
        trial.train_epoch()
    assert seen == {"ieee", "ieee backward"}
    assert setting() == found


def test_features_are_computed_in_it(tiny: Dataset, found: str) -> None:
    model = build_model("resnet_tiny", 0)
    seen = told(model)
    encode(model, tiny.validation.images, tiny, CPU)
    assert seen == {"ieee"}
    seen.clear()
    embedding_metrics_of_batches(model, tiny, CPU)
    assert seen == {"ieee"}
    assert setting() == found


def test_a_checkpoint_gives_its_features_in_it(checkpoint_file: Path, tiny: Dataset, found: str) -> None:
    encoder, seen = load(checkpoint_file), set()
    encoder.model.encoder.register_forward_hook(lambda *_: seen.add(setting()))
    encoder(tiny.validation.images)
    assert seen == {"ieee"}
    assert setting() == found


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_a_cpu(tiny: Dataset) -> None:
    """TF32 rounds each factor of a convolution to 5e-4 of it."""
    model = build_model("resnet_tiny", 0)
    expected = encode(model, tiny.train.images, tiny, CPU)
    gpu = torch.device("cuda")
    features = encode(model.to(gpu), tiny.train.images, tiny, gpu).cpu()
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()
