"""A sweep is accepted with its defaults, or refused with the exact place and what would work."""

import json
import math
from typing import Any

import pytest
from drafts import parameter, problems, space, sweep

from care_sweep.documents import parse
from care_sweep.spec import CategoricalParameter, FloatParameter, IntParameter, SweepSpec


def test_the_design_document_is_accepted() -> None:
    """design.md, 'A sweep and its space', with the fields that there are today."""
    document = {
        "name": "first-look",
        "space": {
            "name": "care-cifar10",
            "parameters": {
                "equivariance_weight": {
                    "type": "float",
                    "low": 0.01,
                    "high": 10,
                    "log": True,
                    "default": 0.3,
                },
                "temperature": {"type": "float", "low": 0.05, "high": 1.0, "log": True, "default": 0.5},
                "augmentation_strength": {"type": "float", "low": 0.0, "high": 1.5, "default": 1.0},
                "encoder": {
                    "type": "categorical",
                    "choices": ["resnet18", "resnet50"],
                    "default": "resnet18",
                },
                "base": {"type": "categorical", "choices": ["simclr", "moco"], "default": "simclr"},
                "queue_size": {
                    "type": "int",
                    "low": 1024,
                    "high": 65536,
                    "log": True,
                    "when": {"base": "moco"},
                },
                "optimizer": {"type": "categorical", "choices": ["adam", "sgd"], "default": "adam"},
                "warmup_epochs": {
                    "type": "int",
                    "low": 1,
                    "high": 64,
                    "log": True,
                    "when": {"optimizer": "sgd"},
                },
            },
            "fixed": {"dataset": "cifar10", "epochs": 100},
            "baselines": [{"equivariance_weight": 0.0}],
        },
        "metric": "validation_knn_accuracy",
        "num_trials": 40,
        "max_concurrent_trials": 4,
        "seed": 0,
        "early_stopping": {"grace_epochs": 5, "reduction_factor": 4},
        "resources": {"cpus_per_trial": 2, "gpus_per_trial": 0.25},
        "budget": {"max_seconds": 36000},
    }
    spec = parse(SweepSpec, document)
    assert spec.epochs == 100
    kinds = [type(found) for found in spec.space.parameters.values()]
    assert kinds == [
        *[FloatParameter] * 3,
        *[CategoricalParameter] * 2,
        IntParameter,
        CategoricalParameter,
        IntParameter,
    ]
    assert parse(SweepSpec, json.loads(spec.model_dump_json())) == spec
    assert parse(SweepSpec, json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_what_is_left_out_has_a_default() -> None:
    spec = parse(SweepSpec, sweep())
    assert (spec.metric, spec.seed, spec.epochs) == ("validation_knn_accuracy", 0, 100)
    assert (spec.max_concurrent_trials, spec.budget, spec.space.name) == (None, None, "inline")
    assert spec.early_stopping is not None
    assert (spec.early_stopping.grace_epochs, spec.early_stopping.reduction_factor) == (5, 4)
    assert (spec.resources.cpus_per_trial, spec.resources.gpus_per_trial) == (1, "auto")


@pytest.mark.parametrize("word", ["none", None])
def test_early_stopping_can_be_switched_off(word: str | None) -> None:
    spec = parse(SweepSpec, sweep(early_stopping=word, metric="validation_probe_accuracy"))
    assert spec.early_stopping is None
    assert parse(SweepSpec, json.loads(spec.model_dump_json())) == spec


BAD_SWEEPS = {
    "unknown key": (sweep(nme=1), "/nme", "did you mean 'name'?"),
    "unknown key that needs escapes": (sweep(**{"a/b~c": 1}), "/a~1b~0c", "known are name, space"),
    "missing name": ({"space": space(), "num_trials": 4}, "/name", "is required"),
    "no document": (None, "", "must be a mapping with keys of name, space"),
    "a list": ([], "", "must be a mapping with keys of name, space"),
    "infinite budget": (sweep(budget={"max_seconds": math.inf}), "/budget/max_seconds", "finite number"),
    "no budget in the budget": (sweep(budget={}), "/budget", "give max_seconds or max_gpu_hours"),
    "0 trials": (sweep(num_trials=0), "/num_trials", "greater than or equal to 1"),
    "too many trials": (sweep(num_trials=10**9), "/num_trials", "less than or equal to 100000"),
    "trials beyond any number": (sweep(num_trials=10**400), "/num_trials", "less than or equal to 100000"),
    "a fraction of a trial": (sweep(num_trials=1.5), "/num_trials", "a valid integer"),
    "fewer trials than baselines": (
        sweep(space=space(baselines=[{"temperature": 0.5}] * 5)),
        "/num_trials",
        "num_trials counts the baselines: use at least 5",
    ),
    "0 at once": (sweep(max_concurrent_trials=0), "/max_concurrent_trials", "greater than or equal to 1"),
    "seed too large": (sweep(seed=2**31), "/seed", "less than 2147483648"),
    "empty name": (sweep(name=""), "/name", "at least 1 character"),
    "name with a line break": (sweep(name="a\nb"), "/name", "printable"),
    "name that is blank": (sweep(name="  "), "/name", "not a space"),
    "name that turns the line around": (sweep(name="a\u202eb"), "/name", "printable"),
    "name with half a character": (sweep(name="\ud800"), "/name", "a valid string"),
    "metric is a loss": (
        sweep(metric="train_loss"),
        "/metric",
        "training losses move with temperature and weight; use one of validation_knn_accuracy",
    ),
    "metric unknown": (sweep(metric="accuracy"), "/metric", "use one of validation_knn_accuracy"),
    "metric of no name": (sweep(metric=["train_loss"]), "/metric", "use one of validation_knn_accuracy"),
    "metric too late for early stopping": (
        sweep(metric="validation_probe_accuracy"),
        "/early_stopping",
        "measured in the last epoch only: use early_stopping none",
    ),
    "no grace": (sweep(early_stopping={"grace_epochs": 0}), "/early_stopping/grace_epochs", "equal to 1"),
    "no reduction": (
        sweep(early_stopping={"reduction_factor": 1}),
        "/early_stopping/reduction_factor",
        "greater than or equal to 2",
    ),
    "one GPU and a half": (
        sweep(resources={"gpus_per_trial": 1.5}),
        "/resources/gpus_per_trial",
        "must be auto, from 0 to 1, or a whole number of GPUs",
    ),
    "fewer than no GPU": (
        sweep(resources={"gpus_per_trial": -1}),
        "/resources/gpus_per_trial",
        "must be auto, from 0 to 1, or a whole number of GPUs",
    ),
    "batches that three GPUs cannot share": (
        sweep(resources={"gpus_per_trial": 3}),
        "/resources/gpus_per_trial",
        "batch_size 256 cannot be shared equally by 3 GPUs: use 2, or multiples of 3 for batch_size",
    ),
    "compiled steps of several GPUs": (
        sweep(
            space={"parameters": {"compile": {"type": "categorical", "choices": ["never", "always"]}}},
            resources={"gpus_per_trial": 2},
        ),
        "/resources/gpus_per_trial",
        "steps over several GPUs are not compiled: use 1, or auto or never for compile",
    ),
    "no CPU": (sweep(resources={"cpus_per_trial": 0}), "/resources/cpus_per_trial", "equal to 1"),
}


def test_several_gpus_train_a_trial_where_they_can_share_its_batches() -> None:
    batches = {"batch_size": {"type": "categorical", "choices": [128, 256]}}
    space = {"parameters": batches}
    assert parse(SweepSpec, sweep(space=space, resources={"gpus_per_trial": 4})).resources.gpus_per_trial == 4
    space = {"parameters": batches, "baselines": [{"batch_size": 66, "num_splits": 2}]}
    (problem,) = problems(SweepSpec, sweep(space=space, resources={"gpus_per_trial": 4}))
    assert problem.detail.startswith("batch_size 66 cannot be shared equally by 4 GPUs: use 3, or")


@pytest.mark.parametrize(("document", "pointer", "detail"), BAD_SWEEPS.values(), ids=BAD_SWEEPS.keys())
def test_a_bad_sweep_is_refused_at_its_place(document: Any, pointer: str, detail: str) -> None:
    (problem,) = problems(SweepSpec, document)
    assert problem.pointer == pointer
    assert detail in problem.detail


def test_a_problem_shows_what_was_received() -> None:
    (problem,) = problems(SweepSpec, parameter(type="float", low=math.nan, high=1))
    assert problem.value == "nan"
    (problem,) = problems(SweepSpec, sweep(num_trials=0))
    assert problem.value == "0"


def test_all_mistakes_of_one_level_come_together() -> None:
    found = problems(
        SweepSpec, sweep(num_trials=0, seed=-1, metric="loss", space={"parameters": {"temperature": 3}})
    )
    assert [problem.pointer for problem in found] == [
        "/space/parameters/temperature",
        "/metric",
        "/num_trials",
        "/seed",
    ]
