"""Small datasets and configurations on which a trial takes a fraction of a second."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from care_sweep.learn.checkpoint import save
from care_sweep.learn.data import Dataset, Split, load_dataset
from care_sweep.learn.encoder import build_model
from care_sweep.spec import TrialConfig


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mini() -> Dataset:
    return load_dataset("cifar10-mini", download_directory=Path("unused"))


@pytest.fixture(scope="session")
def tiny(mini: Dataset) -> Dataset:
    """The first 100 train and 20 validation images of cifar10-mini; no test split is there to be read."""

    def first(split: Split, size: int) -> Split:
        return Split(split.images[:size], split.labels[:size])

    return Dataset(
        name="tiny",
        class_names=mini.class_names,
        train=first(mini.train, 100),
        validation=first(mini.validation, 20),
        test=first(mini.test, 0),
        fingerprint="0" * 64,
        mean=mini.mean,
        std=mini.std,
    )


@pytest.fixture(scope="session")
def config() -> TrialConfig:
    return TrialConfig(
        dataset="tiny",
        encoder="resnet_tiny",
        epochs=3,
        batch_size=32,
        num_splits=4,
        equivariance_weight=0.5,
        schedule="cosine",
        warmup_epochs=1,
        knn_neighbors=5,
        probe_epochs=2,
    )


@pytest.fixture(scope="session")
def checkpoint_file(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained resnet_tiny whose probe says something."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.tar"
    config = TrialConfig(encoder="resnet_tiny", batch_size=32, num_splits=4, knn_neighbors=5, probe_epochs=1)
    model = build_model("resnet_tiny", 0)
    probe = nn.Linear(model.num_features, 10)
    nn.init.normal_(probe.weight, generator=torch.Generator().manual_seed(1))
    save(path, model=model, probe=probe, config=config, metrics={"train_loss": 1.25}, data=tiny)
    return path
