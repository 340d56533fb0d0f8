"""The space of the demo: sound, and the published point in it."""

from pathlib import Path

import yaml

from care_sweep.documents import parse
from care_sweep.spec import SearchSpace

SPACES = Path(__file__).parents[1] / "search_spaces"


def test_cifar10_mini() -> None:
    space = parse(SearchSpace, yaml.safe_load((SPACES / "cifar10-mini.yaml").read_text()))
    simclr = space.trial_config(space.baseline_values(space.baselines[0]))
    care = space.trial_config(space.baseline_values({}))
    assert simclr.equivariance_weight == 0
    assert care == simclr.model_copy(update={"equivariance_weight": 0.3})
    published = care.equivariance_weight / (2 * (care.batch_size // care.num_splits - 1))
    assert abs(published - 0.01) < 1e-12
    assert (care.dataset, care.encoder) == ("cifar10-mini", "resnet_tiny")
