"""The spaces that the tests of search share."""

import pytest

from care_sweep.documents import parse
from care_sweep.spec import SearchSpace


@pytest.fixture(scope="session")
def plain_space() -> SearchSpace:
    parameters = {
        "equivariance_weight": {"type": "float", "low": 0.01, "high": 10, "log": True, "default": 0.3},
        "temperature": {"type": "float", "low": 0.05, "high": 1.0, "log": True, "default": 0.5},
        "augmentation_strength": {"type": "float", "low": 0.0, "high": 1.5, "default": 1.0},
    }
    return parse(SearchSpace, {"parameters": parameters, "baselines": [{"equivariance_weight": 0.0}]})


@pytest.fixture(scope="session")
def conditional_space() -> SearchSpace:
    parameters = {
        "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
        "learning_rate": {"type": "float", "low": 1e-3, "high": 1, "log": True, "when": {"optimizer": "sgd"}},
        "weight_decay": {
            "type": "float",
            "low": 1e-6,
            "high": 1,
            "log": True,
            "when": {"optimizer": ["adam"]},
        },
        "schedule": {
            "type": "categorical",
            "choices": ["constant", "cosine"],
            "when": {"optimizer": "sgd"},
        },
        "warmup_epochs": {
            "type": "int",
            "low": 0,
            "high": 10,
            "when": {"optimizer": "sgd", "schedule": "cosine"},
        },
        "temperature": {"type": "float", "low": 0.05, "high": 1.0, "log": True},
    }
    return parse(SearchSpace, {"parameters": parameters})


@pytest.fixture(params=["plain_space", "conditional_space"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    found: SearchSpace = request.getfixturevalue(request.param)
    return found
