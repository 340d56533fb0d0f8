"""A trial's configuration: its defaults stay what documents meant, and fields that do not fit are refused."""

import math
from typing import Any

import pytest
from drafts import problems

from care_sweep.spec import TrialConfig


def test_the_new_options_stay_at_what_documents_meant_before_them() -> None:
    config = TrialConfig()
    assert (config.base, config.objective) == ("simclr", "infonce")
    assert (config.augmentation_scope, config.batch_norm) == ("split", "per_view")
    assert (config.stem, config.least_crop_scale) == ("cifar", 0.08)


@pytest.mark.parametrize(
    ("document", "pointer", "detail"),
    [
        ({"epochs": 0}, "/epochs", "greater than or equal to 1"),
        ({"temperature": 0}, "/temperature", "greater than or equal to 0.001"),
        ({"equivariance_weight": -0.1}, "/equivariance_weight", "greater than or equal to 0"),
        ({"equivariance_weight": math.inf}, "/equivariance_weight", "finite number"),
        ({"batch_size": 10, "num_splits": 4}, "/num_splits", "does not divide batch_size 10; 5 would"),
        ({"batch_size": 4, "num_splits": 4}, "/num_splits", "use at most 2 splits"),
        ({"base": "byol"}, "/base", "'simclr', 'moco' or 'barlow_twins'"),
        ({"base": "moco", "batch_size": 8192}, "/queue_size", "queue_size 4096 is too small: use 8192"),
        ({"base": "moco", "key_encoder_momentum": 1.0}, "/key_encoder_momentum", "less than 1"),
        ({"base": "moco", "objective": "alignment"}, "/objective", "the whole loss of moco"),
        ({"base": "barlow_twins", "objective": "none"}, "/objective", "use it with base simclr"),
        ({"redundancy_weight": -1}, "/redundancy_weight", "greater than or equal to 0"),
        ({"objective": "none", "equivariance_weight": 0}, "/objective", "leaves nothing to train"),
        ({"objective": "invariance"}, "/objective", "'infonce', 'alignment', 'uniformity' or 'none'"),
        ({"augmentation_scope": "image"}, "/augmentation_scope", "'split' or 'batch'"),
        ({"batch_norm": "none"}, "/batch_norm", "'per_view' or 'joint'"),
        ({"encoder": "vit"}, "/encoder", "'resnet_tiny', 'resnet18' or 'resnet50'"),
        ({"encoder": "resnet_tiny", "stem": "imagenet"}, "/stem", "use stem cifar with it, or stem imagenet"),
        ({"stem": "vit"}, "/stem", "'cifar' or 'imagenet'"),
        ({"least_crop_scale": 0}, "/least_crop_scale", "greater than 0"),
        ({"least_crop_scale": 1.1}, "/least_crop_scale", "less than or equal to 1"),
        ({"lr": 0.1}, "/lr", "unknown"),
        ({"dataset": ""}, "/dataset", "at least 1 character"),
    ],
)
def test_a_bad_configuration_is_refused(document: Any, pointer: str, detail: str) -> None:
    (problem,) = problems(TrialConfig, document)
    assert (problem.pointer, detail in problem.detail) == (pointer, True)


def test_a_warm_up_fits_into_the_epochs() -> None:
    (problem,) = problems(TrialConfig, {"epochs": 3, "warmup_epochs": 4})
    assert problem.pointer == "/warmup_epochs"
    assert "does not fit" in problem.detail
