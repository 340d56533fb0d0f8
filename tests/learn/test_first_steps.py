"""Does a trial train with what its configuration says? Its first losses, written out with the slow oracles.

Every configuration here is off every default, so that a setting which is not passed on changes a loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from oracles import (
    slow_alignment,
    slow_barlow_twins,
    slow_equivariance,
    slow_info_nce,
    slow_queue_info_nce,
    slow_uniformity,
)
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import build_model
from care_sweep.learn.randomness import generator
from care_sweep.learn.train import _Trial
from care_sweep.learn.views import ViewParameters, apply_views, draw_shared_views, draw_views, normalise
from care_sweep.spec import TrialConfig

CPU = torch.device("cpu")
OFF_DEFAULT: dict[str, Any] = {
    "dataset": "few",
    "encoder": "resnet_tiny",
    "epochs": 2,
    "batch_size": 12,
    "num_splits": 3,
    "equivariance_weight": 0.7,
    "temperature": 0.23,
    "augmentation_strength": 0.7,
    "least_crop_scale": 0.3,
    "queue_size": 30,
    "key_encoder_momentum": 0.8,
    "redundancy_weight": 0.03,
    "learning_rate": 0.004,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "knn_neighbors": 3,
    "probe_epochs": 4,
    "seed": 3,
}


def configured(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({**OFF_DEFAULT, **changes})


@pytest.fixture(scope="module")
def few(tiny: Dataset) -> Dataset:
    """Thirty-seven train images: three steps of 12, and one image left over."""
    return dataclasses.replace(tiny, train=Split(tiny.train.images[:37], tiny.train.labels[:37]))


# --- one step -----------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "SimCLR": {},
    "alignment": {"objective": "alignment"},
    "uniformity": {"objective": "uniformity"},
    "nothing": {"objective": "none"},
    "MoCo": {"base": "moco"},
    "Barlow Twins": {"base": "barlow_twins"},
}


def first_losses(config: TrialConfig, data: Dataset) -> tuple[float, float, float]:
    """Loss, contrast and equivariance of the first step, from the projector's outputs for the drawn views."""
    num_images = config.batch_size * (len(data.train.images) // config.batch_size)
    order = torch.randperm(len(data.train.images), generator=generator(config.seed, "permutation", 1))
    images = data.train.images[order[: config.batch_size]]
    drawing = (data.image_size, config.augmentation_strength)
    source, shared_source = (generator(config.seed, stream, 1) for stream in ("views", "shared views"))
    own: list[ViewParameters] = []
    if config.objective != "none":
        own = [draw_views(num_images, *drawing, source, config.least_crop_scale) for _ in range(2)]
    num_steps = num_images // config.batch_size
    num_shared = num_steps * (config.num_splits if config.augmentation_scope == "split" else 1)
    shared: list[ViewParameters] = []
    if config.equivariance_weight:
        shared = [
            draw_shared_views(num_images, num_shared, *drawing, shared_source, config.least_crop_scale)
            for _ in range(2)
        ]
    pixels = [
        normalise(apply_views(images, drawn[: config.batch_size]), data.mean, data.std)
        for drawn in [*own, *shared]
    ]
    model, keys_of = (build_model(config.encoder, config.seed, config.stem).train() for _ in range(2))
    held = [pixels.pop(1)] if config.base == "moco" else []
    with torch.no_grad():
        if config.batch_norm == "joint":
            outputs = list(model.project(torch.cat(pixels)).chunk(len(pixels)))
        else:
            outputs = [model.project(group) for group in pixels]
        keys = [normalize(keys_of.project(group)) for group in held]
    contrast = slow_contrast(config, outputs, keys)
    if not shared:
        return contrast, contrast, 0.0
    equivariance = slow_equivariance(*map(normalize, outputs[-2:]), config.num_splits)
    return contrast + config.equivariance_weight * equivariance, contrast, equivariance


def slow_contrast(config: TrialConfig, outputs: list[Tensor], keys: list[Tensor]) -> float:
    if config.objective == "none":
        return 0.0
    if config.base == "barlow_twins":
        return slow_barlow_twins(outputs[0], outputs[1], config.redundancy_weight)
    if config.base == "moco":
        queue = normalize(torch.randn(config.queue_size, 128, generator=generator(config.seed, "queue")))
        return slow_queue_info_nce(normalize(outputs[0]), keys[0], queue, config.temperature)
    slow = {"infonce": slow_info_nce, "alignment": slow_alignment, "uniformity": slow_uniformity}
    return slow[config.objective](normalize(outputs[0]), normalize(outputs[1]), config.temperature)


@pytest.mark.parametrize("batch_norm", ["per_view", "joint"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {**way, "equivariance_weight": weight, "augmentation_scope": scope}, id=f"{name} {words}"
        )
        for name, way in WAYS.items()
        for words, weight, scope in (
            ("alone", 0.0, "split"),
            ("and L_equi", 0.7, "split"),
            ("a batch", 0.7, "batch"),
        )
        if weight or name != "nothing"
    ],
)
def test_the_first_step_is_written_out(few: Dataset, change: dict[str, Any], batch_norm: str) -> None:
    config = configured(**change, batch_norm=batch_norm)
    trial = _Trial(config, few, CPU)
    order = torch.randperm(len(few.train.images), generator=generator(config.seed, "permutation", 1))
    images = few.train.images[order[: config.batch_size]]
    groups = [group[: config.batch_size] for group in trial._draw_views(1)]
    trial.model.train()
    losses = trial._step(images, groups, 0, 0.0).tolist()
    assert losses == pytest.approx(first_losses(config, few), rel=2e-5, abs=1e-6)
    assert (losses[2] > 0) == (config.equivariance_weight > 0)


# --- which settings matter, and which do not ----------------------------------------------------------------

OTHER: dict[str, Any] = {
    "encoder": "resnet18",
    "epochs": 3,
    "batch_size": 9,
    "num_splits": 2,
    "equivariance_weight": 0.6,
    "temperature": 0.3,
    "augmentation_strength": 0.8,
    "least_crop_scale": 0.2,
    "augmentation_scope": "batch",
    "batch_norm": "joint",
    "queue_size": 24,
    "key_encoder_momentum": 0.5,
    "redundancy_weight": 0.06,
    "optimizer": "sgd",
    "learning_rate": 0.008,
    "weight_decay": 0.1,
    "schedule": "constant",
    "warmup_epochs": 0,
    "seed": 4,
    "dataset": "other",
    "resize": 32,
    "knn_neighbors": 7,
    "probe_epochs": 9,
}
"""Another value of every field that can be changed alone."""

ALWAYS = {
    *("batch_size", "augmentation_strength", "least_crop_scale", "batch_norm", "optimizer", "learning_rate"),
    *("weight_decay", "warmup_epochs", "seed"),
}
OF_L_EQUI = {"num_splits", "equivariance_weight", "augmentation_scope"}
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "CARE": ({}, ALWAYS | OF_L_EQUI | {"temperature"}),
    "SimCLR": ({"equivariance_weight": 0.0}, ALWAYS | {"equivariance_weight", "temperature"}),
    "alignment": ({"objective": "alignment"}, ALWAYS | OF_L_EQUI | {"temperature"}),
    "uniformity": ({"objective": "uniformity"}, ALWAYS | OF_L_EQUI | {"temperature"}),
    "L_equi alone": ({"objective": "none"}, ALWAYS | OF_L_EQUI),
    "MoCo": (
        {"base": "moco"},
        ALWAYS | OF_L_EQUI | {"temperature", "queue_size", "key_encoder_momentum"},
    ),
    "Barlow Twins": ({"base": "barlow_twins"}, ALWAYS | OF_L_EQUI | {"redundancy_weight"}),
}


def losses_of_an_epoch(config: TrialConfig, data: Dataset) -> dict[str, float]:
    """Of three steps in warm-up: each has its learning rate, and moves the losses of those after it."""
    return _Trial(config, data, CPU).train_epoch()


@pytest.mark.parametrize(("change", "matter"), CASES.values(), ids=CASES.keys())
def test_what_matters_to_the_losses_does_and_what_does_not_does_not(
    few: Dataset, change: Mapping[str, Any], matter: set[str]
) -> None:
    before = losses_of_an_epoch(configured(**change), few)
    for name in OTHER.keys() - {"encoder", "schedule", "epochs"}:  # these have a test of their own
        after = losses_of_an_epoch(configured(**{**change, name: OTHER[name]}), few)
        if name == "weight_decay":  # Adam divides most of it away
            assert after != before, name
        elif name in matter:
            assert after["train_loss"] != pytest.approx(before["train_loss"], rel=1e-6), name
        else:
            assert after == before, name


def test_every_field_has_been_changed() -> None:
    assert (
        OTHER.keys() | {"base", "objective", "stem", "precision", "compile"}
        == TrialConfig.model_fields.keys()
    )
    for name, field in TrialConfig.model_fields.items():
        assert name not in OFF_DEFAULT or OFF_DEFAULT[name] != field.default, name
    assert all(OTHER[name] != getattr(configured(), name) for name in OTHER)


def test_encoder_stem_base_and_objective_matter(few: Dataset) -> None:
    one_step = dataclasses.replace(few, train=Split(few.train.images[:12], few.train.labels[:12]))
    changes: list[dict[str, Any]] = [
        *WAYS.values(),
        {"encoder": "resnet18"},
        {"encoder": "resnet18", "stem": "imagenet"},
    ]
    losses = [losses_of_an_epoch(configured(**change), one_step)["train_loss"] for change in changes]
    assert len({round(loss, 4) for loss in losses}) == len(changes)


def test_schedule_and_epochs_matter_after_the_warm_up(few: Dataset) -> None:
    def second_epoch(**changes: Any) -> dict[str, float]:
        trial = _Trial(configured(**changes), few, CPU)
        trial.train_epoch()
        return trial.train_epoch()

    cosine, longer = second_epoch(), second_epoch(epochs=3)
    constant, longer_constant = (second_epoch(schedule="constant", epochs=n) for n in (2, 3))
    assert len({found["train_loss"] for found in (cosine, longer, constant)}) == 3
    assert constant == longer_constant
