"""Each named space begins with the published point, on our scale, and then its base without L_equi."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from care_sweep.cli import app
from care_sweep.search.catalog import load_space, space_names
from care_sweep.spec import TrialConfig

ADAM = {"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-6, "schedule": "constant"}
STL10_SGD = {
    **{"optimizer": "sgd", "learning_rate": 0.06, "weight_decay": 5e-4},
    **{"schedule": "cosine", "warmup_epochs": 10},
}
IMAGENET_SGD = {"optimizer": "sgd", "learning_rate": 0.8, "weight_decay": 1e-4, "schedule": "cosine"}
CIFAR10 = {"dataset": "cifar10", "batch_size": 256, "num_splits": 16, "temperature": 0.5, **ADAM}
CIFAR100 = {"dataset": "cifar100", "batch_size": 256, "num_splits": 4, "temperature": 0.5, **ADAM}
IMAGENET = {
    **{"dataset": "imagenet100:imagenet", "resize": 224, "stem": "imagenet", "least_crop_scale": 0.2},
    **{"batch_size": 512, "num_splits": 16, "temperature": 0.2},
    **IMAGENET_SGD,
}
MOCO_ON_CIFAR = {"base": "moco", "temperature": 0.1, "key_encoder_momentum": 0.99}

RECIPES: dict[str, tuple[float, dict[str, Any]]] = {
    "care-cifar10": (0.01, CIFAR10),
    "care-cifar100": (0.001, CIFAR100),
    "care-stl10": (
        0.01,
        {"dataset": "stl10", "resize": 32, "batch_size": 256, "num_splits": 8, "temperature": 0.5}
        | STL10_SGD,
    ),
    "care-imagenet100": (0.005, IMAGENET),
    "moco-cifar10": (0.01, CIFAR10 | MOCO_ON_CIFAR),
    "moco-cifar100": (0.001, CIFAR100 | MOCO_ON_CIFAR),
    "moco-imagenet100": (
        0.01 / 8,
        IMAGENET | {"base": "moco", "queue_size": 65536, "key_encoder_momentum": 0.999},
    ),
    "barlow-cifar10": (0.01, CIFAR10 | {"base": "barlow_twins"}),
    "ablation-terms": (0.01, CIFAR10),
    "ablation-scope": (0.01, CIFAR10),
    "ablation-strength": (0.01, CIFAR10),
}
"""The published weight, on the published scale, and what is told beside it; batches of 512 keep c = 32."""


def baselines(name: str) -> list[TrialConfig]:
    space = load_space(name)
    return [space.trial_config(space.baseline_values(baseline)) for baseline in space.baselines]


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_baseline_is_as_published(name: str) -> None:
    published, told = RECIPES[name]
    weight = published * 2 * (told["batch_size"] / told["num_splits"] - 1)
    epochs = baselines(name)[0].epochs
    expected = TrialConfig(encoder="resnet50", epochs=epochs, equivariance_weight=weight, **told)
    first = baselines(name)[0]
    assert first.equivariance_weight == pytest.approx(weight)
    assert first == expected.model_copy(update={"equivariance_weight": first.equivariance_weight})


@pytest.mark.parametrize("name", RECIPES)
def test_the_second_is_the_same_without_equivariance(name: str) -> None:
    first, second, *_ = baselines(name)
    assert second == first.model_copy(update={"equivariance_weight": 0.0})


def test_the_images_of_a_split_are_as_many_as_published() -> None:
    found = {name: baselines(name)[0] for name in RECIPES}
    images_a_split = {name: config.batch_size // config.num_splits for name, config in found.items()}
    assert images_a_split["care-imagenet100"] == images_a_split["moco-imagenet100"] == 128 // 4
    assert (images_a_split["care-cifar100"], images_a_split["care-stl10"]) == (64, 32)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        (
            "ablation-terms",
            ("objective", "equivariance_weight"),
            [
                ("infonce", 0.3),
                ("infonce", 0.0),
                ("uniformity", 0.3),
                ("uniformity", 0.0),
                ("none", 0.3),
            ],
        ),
        (
            "ablation-scope",
            ("augmentation_scope", "equivariance_weight"),
            [("split", 0.3), ("split", 0.0), ("batch", 0.3), ("batch", 0.9)],
        ),
        (
            "ablation-strength",
            ("augmentation_strength", "equivariance_weight"),
            [(1.0, 0.3), (1.0, 0.0), (0.5, 0.3), (0.5, 0.0), (1.5, 0.3), (1.5, 0.0)],
        ),
    ],
)
def test_an_ablation_runs_each_of_its_points(
    name: str, fields: tuple[str, str], expected: list[tuple[Any, float]]
) -> None:
    """And nothing but these fields differs."""
    found = baselines(name)
    assert [tuple(getattr(config, field) for field in fields) for config in found] == expected
    first = {field: getattr(found[0], field) for field in fields}
    assert all(config.model_copy(update=first) == found[0] for config in found)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("moco")])
def test_queue_and_momentum_are_searched(name: str) -> None:
    assert {"queue_size", "key_encoder_momentum"} <= set(load_space(name).parameters)


def test_the_command_lists_every_recipe() -> None:
    answer = CliRunner().invoke(app, ["spaces", "--json"])
    assert answer.exit_code == 0
    assert json.loads(answer.stdout) == space_names() == sorted([*RECIPES, "cifar10-mini"])
