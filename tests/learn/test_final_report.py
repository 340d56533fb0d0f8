"""Accuracies on the test split are those of its images, and nothing else in the program reads it."""

import ast
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from care_sweep.learn.checkpoint import LoadedEncoder, load, save
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import build_model
from care_sweep.learn.evaluate import evaluate_encoder
from care_sweep.learn.final_report import accuracies_on_test
from care_sweep.spec import TrialConfig

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def encoder(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> LoadedEncoder:
    """Untrained; its images have another mean than those it is tested on."""
    model = build_model(config.encoder, 0)
    probe = nn.Linear(model.num_features, len(tiny.class_names))
    own = dataclasses.replace(tiny, mean=(0.3, 0.4, 0.5))
    save(tmp_path / "it.tar", model=model, probe=probe, config=config, metrics={}, data=own)
    return load(tmp_path / "it.tar")


def test_they_are_of_the_test_images_after_learning_from_all_others(
    encoder: LoadedEncoder, tiny: Dataset, mini: Dataset
) -> None:
    test = Split(mini.test.images[:40], mini.test.labels[:40])
    found = accuracies_on_test(encoder, dataclasses.replace(tiny, test=test))
    others = (tiny.train, tiny.validation)
    whole = Split(torch.cat([s.images for s in others]), torch.cat([s.labels for s in others]))
    moved = dataclasses.replace(tiny, train=whole, validation=test, mean=(0.3, 0.4, 0.5))
    expected = evaluate_encoder(encoder.model, moved, encoder.config, device=torch.device("cpu"))
    probes = ("probe_accuracy", "probe_accuracy_mean", "probe_accuracy_spread")
    assert found == pytest.approx(
        {f"test_{name}": expected[f"validation_{name}"] for name in ("knn_accuracy", *probes)}
        | {"num_test_images": 40.0}
    )


def test_nothing_else_reads_the_test_split() -> None:
    readers = {
        str(path.relative_to(_ROOT))
        for room in ("care_sweep", "service", "benchmarks")
        for path in (_ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "test"
    }
    assert readers == {"care_sweep/learn/data.py", "care_sweep/learn/final_report.py"}
