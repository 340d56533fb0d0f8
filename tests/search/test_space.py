"""A space and Optuna agree: what is drawn lies inside, and what lies outside is refused with its place."""

import json
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from care_sweep.errors import InvalidDocument
from care_sweep.search.space import distributions, suggest
from care_sweep.spec import SearchSpace


def draw(space: SearchSpace, num_points: int) -> list[optuna.Trial]:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    trials = [study.ask() for _ in range(num_points)]
    for trial in trials:
        suggest(space, trial)
    return trials


def test_the_distributions_of_values_are_those_they_were_drawn_from(space: SearchSpace) -> None:
    for trial in draw(space, 50):
        assert distributions(space, trial.params) == trial.distributions
        through_json = json.loads(json.dumps(trial.params))
        assert distributions(space, through_json) == trial.distributions
        space.trial_config(trial.params)


def test_only_active_parameters_are_drawn(conditional_space: SearchSpace) -> None:
    seen = {tuple(sorted(trial.params)) for trial in draw(conditional_space, 50)}
    assert seen == {
        ("optimizer", "temperature", "weight_decay"),
        ("learning_rate", "optimizer", "schedule", "temperature"),
        ("learning_rate", "optimizer", "schedule", "temperature", "warmup_epochs"),
    }


def test_each_kind_of_parameter_has_its_distribution(conditional_space: SearchSpace) -> None:
    values = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "schedule": "cosine",
        "warmup_epochs": 10,
        "temperature": 1,
    }
    assert distributions(conditional_space, values) == {
        "optimizer": CategoricalDistribution(["adam", "sgd"]),
        "learning_rate": FloatDistribution(1e-3, 1, log=True),
        "schedule": CategoricalDistribution(["constant", "cosine"]),
        "warmup_epochs": IntDistribution(0, 10),
        "temperature": FloatDistribution(0.05, 1, log=True),
    }


ADAM = {"optimizer": "adam", "weight_decay": 1e-3, "temperature": 0.5}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 3, "temperature": 0.5}


@pytest.mark.parametrize(
    ("values", "pointer", "detail"),
    [
        (ADAM | {"temperature": 2.0}, "/temperature", "must be a float in [0.05, 1.0]"),
        (ADAM | {"temperature": "warm"}, "/temperature", "must be a float in [0.05, 1.0]"),
        (ADAM | {"temperature": True}, "/temperature", "must be a float in [0.05, 1.0]"),
        (ADAM | {"temperature": float("nan")}, "/temperature", "must be a float in [0.05, 1.0]"),
        (SGD | {"warmup_epochs": 3.5}, "/warmup_epochs", "must be a int in [0, 10]"),
        (SGD | {"warmup_epochs": 11}, "/warmup_epochs", "must be a int in [0, 10]"),
        (SGD | {"schedule": "step"}, "/schedule", "must be among ['constant', 'cosine']"),
        (ADAM | {"temprature": 0.5}, "/temprature", "did you mean 'temperature'?"),
        (ADAM | {"learning_rate": 0.1}, "/learning_rate", "active only when {'optimizer': 'sgd'}"),
        ({"optimizer": "adam", "weight_decay": 1e-3}, "/temperature", "is missing"),
    ],
)
def test_values_of_another_space_are_refused(
    conditional_space: SearchSpace, values: dict[str, Any], pointer: str, detail: str
) -> None:
    with pytest.raises(InvalidDocument) as caught:
        distributions(conditional_space, values)
    (problem,) = [problem for problem in caught.value.problems if problem.pointer == pointer]
    assert detail in problem.detail
