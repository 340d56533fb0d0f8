"""A search space is sound as a whole, or refused with the place that is not; baselines are filled up."""

import json
import math
from typing import Any

import pytest
from drafts import OPTIMIZER, TEMPERATURE, conditional, parameter, problems, space, sweep

from care_sweep.documents import parse
from care_sweep.errors import InvalidDocument
from care_sweep.spec import SearchSpace, SweepSpec, TrialConfig

BAD_SPACES = {
    "unknown key in the space": (
        sweep(space=space(paramters={})),
        "/space/paramters",
        "did you mean 'parameters'",
    ),
    "unknown parameter in when": (
        conditional({"optimizr": "sgd"}),
        "/space/parameters/temperature/when/optimizr",
        "did you mean 'optimizer'?",
    ),
    "when on a parameter below": (
        sweep(
            space={
                "parameters": {
                    "temperature": TEMPERATURE | {"when": {"optimizer": "sgd"}},
                    "optimizer": OPTIMIZER,
                }
            }
        ),
        "/space/parameters/temperature/when/optimizer",
        "must stand above 'temperature': move 'optimizer' up",
    ),
    "when on itself": (
        parameter(**TEMPERATURE, when={"temperature": 0.5}),
        "/space/parameters/temperature/when/temperature",
        "must stand above",
    ),
    "when on a range": (
        sweep(
            space={
                "parameters": {
                    "learning_rate": TEMPERATURE,
                    "temperature": TEMPERATURE | {"when": {"learning_rate": 0.5}},
                }
            }
        ),
        "/space/parameters/temperature/when/learning_rate",
        "must be categorical, it is float",
    ),
    "when with a value that is no choice": (
        conditional({"optimizer": "sdg"}),
        "/space/parameters/temperature/when/optimizer",
        "must be among ['adam', 'sgd']",
    ),
    "when with a list": (
        conditional({"optimizer": ["adam", "sdg"]}),
        "/space/parameters/temperature/when/optimizer",
        "must be among ['adam', 'sgd']",
    ),
    "NaN fixed": (
        sweep(space=space(fixed={"learning_rate": math.nan})),
        "/space/fixed/learning_rate",
        "finite number",
    ),
    "infinity in a baseline": (
        sweep(space=space(baselines=[{"temperature": -math.inf}])),
        "/space/baselines/0/temperature",
        "finite number",
    ),
    "empty space": (sweep(space={"parameters": {}}), "/space/parameters", "at least 1 item"),
    "no parameters": (sweep(space={}), "/space/parameters", "is required"),
    "choice that is no value": (
        parameter("encoder", type="categorical", choices=["resnet18", "vit"]),
        "/space/parameters/encoder/choices/1",
        "should be 'resnet_tiny', 'resnet18' or 'resnet50'",
    ),
    "unknown parameter": (
        parameter("temprature", **TEMPERATURE),
        "/space/parameters/temprature",
        "did you mean 'temperature'?",
    ),
    "epochs searched": (
        parameter("epochs", type="int", low=1, high=3),
        "/space/parameters/epochs",
        "the same for all trials of a sweep: put it under fixed",
    ),
    "seed searched": (
        parameter("seed", type="int", low=1, high=3),
        "/space/parameters/seed",
        "give it as the sweep's seed",
    ),
    "range that no trial takes": (
        parameter(type="float", low=-1, high=1),
        "/space/parameters/temperature/low",
        "greater than or equal to 0.001",
    ),
    "fractions of a whole number": (
        parameter("warmup_epochs", type="float", low=0, high=2),
        "/space/parameters/warmup_epochs/type",
        "warmup_epochs is a whole number: use int",
    ),
    "range of batch sizes": (
        parameter("batch_size", type="int", low=16, high=64),
        "/space/parameters/batch_size/type",
        "must be categorical",
    ),
    "splits that do not divide": (
        sweep(space=space(fixed={"batch_size": 100, "num_splits": 16})),
        "/space/fixed/num_splits",
        "num_splits 16 does not divide batch_size 100; 20 would",
    ),
    "a batch size that the default splits do not divide": (
        parameter("batch_size", type="categorical", choices=[100, 256]),
        "/space/parameters/batch_size",
        "num_splits 16 does not divide batch_size 100; 20 would",
    ),
    "choices of splits that do not divide": (
        parameter("num_splits", type="categorical", choices=[3, 4]),
        "/space/parameters/num_splits",
        "num_splits 3 does not divide batch_size 256; 2 would",
    ),
    "one image a split": (
        sweep(space=space(fixed={"batch_size": 16, "num_splits": 16})),
        "/space/fixed/num_splits",
        "with batch_size 16, use at most 8 splits",
    ),
    "fixed unknown": (
        sweep(space=space(fixed={"learnin_rate": 0.1})),
        "/space/fixed/learnin_rate",
        "did you mean 'learning_rate'?",
    ),
    "fixed and searched": (
        sweep(space=space(fixed={"temperature": 0.5})),
        "/space/fixed/temperature",
        "also stands under parameters; keep one of the two",
    ),
    "seed fixed": (sweep(space=space(fixed={"seed": 3})), "/space/fixed/seed", "unknown"),
    "fixed to no value": (sweep(space=space(fixed={"epochs": 0})), "/space/fixed/epochs", "equal to 1"),
    "fixed to null": (
        sweep(space=space(fixed={"dataset": None})),
        "/space/fixed/dataset",
        "should be a number, a string",
    ),
    "baseline with an unknown name": (
        sweep(space=space(baselines=[{"temperature": 0.5}, {"temprature": 1}])),
        "/space/baselines/1/temprature",
        "did you mean 'temperature'?",
    ),
    "baseline that omits what has no default": (
        sweep(space=space(baselines=[{"learning_rate": 1}])),
        "/space/baselines/0",
        "omits temperature: give a value here or a default to the parameter",
    ),
    "baseline that no trial takes": (
        sweep(space=space(baselines=[{"temperature": -1}])),
        "/space/baselines/0/temperature",
        "greater than or equal to 0.001",
    ),
    "baseline of other epochs": (
        sweep(space=space(baselines=[{"temperature": 0.5, "epochs": 1}])),
        "/space/baselines/0/epochs",
        "unknown",
    ),
    "a queue shorter than the batch": (
        sweep(space=space(fixed={"base": "moco", "queue_size": 128})),
        "/space/fixed/queue_size",
        "queue_size 128 is too small: use 256 or more",
    ),
    "a range of queues that begins below a batch size": (
        sweep(
            space={
                "parameters": {
                    "base": {"type": "categorical", "choices": ["simclr", "moco"]},
                    "batch_size": {"type": "categorical", "choices": [128, 2048]},
                    "queue_size": {
                        "type": "int",
                        "low": 1024,
                        "high": 65536,
                        "log": True,
                        "when": {"base": "moco"},
                    },
                }
            }
        ),
        "/space/parameters/queue_size",
        "MoCo's queue takes in batch_size 2048 keys a step",
    ),
    "a term of InfoNCE on another base": (
        sweep(
            space={
                "parameters": {"base": {"type": "categorical", "choices": ["simclr", "barlow_twins"]}},
                "fixed": {"objective": "uniformity"},
            }
        ),
        "/space/fixed/objective",
        "objective uniformity leaves out terms of SimCLR's InfoNCE: use it with base simclr",
    ),
    "a stem that an encoder among the choices cannot have": (
        sweep(
            space={
                "parameters": {
                    "encoder": {"type": "categorical", "choices": ["resnet18", "resnet_tiny"]},
                    "stem": {"type": "categorical", "choices": ["cifar", "imagenet"]},
                }
            }
        ),
        "/space/parameters/stem",
        "resnet_tiny has a stem of its own",
    ),
    "nothing to train at the low end": (
        sweep(
            space={
                "parameters": {"equivariance_weight": {"type": "float", "low": 0, "high": 1}},
                "fixed": {"objective": "none"},
            }
        ),
        "/space/fixed/objective",
        "leaves nothing to train: use a weight above 0",
    ),
    "nothing to train in a baseline": (
        sweep(
            space={
                "parameters": {
                    "equivariance_weight": {"type": "float", "low": 0.1, "high": 1},
                },
                "fixed": {"objective": "none"},
                "baselines": [{"equivariance_weight": 0.0}],
            }
        ),
        "/space/baselines/0/objective",
        "leaves nothing to train",
    ),
    "baseline whose splits do not divide": (
        sweep(space=space(baselines=[{"temperature": 0.5, "num_splits": 3}])),
        "/space/baselines/0/num_splits",
        "num_splits 3 does not divide batch_size 256",
    ),
    "space with a blank in its name": (sweep(space=space(name="a b")), "/space/name", "letters, digits"),
}


@pytest.mark.parametrize(("document", "pointer", "detail"), BAD_SPACES.values(), ids=BAD_SPACES.keys())
def test_a_bad_space_is_refused_at_its_place(document: Any, pointer: str, detail: str) -> None:
    (problem,) = problems(SweepSpec, document)
    assert problem.pointer == pointer
    assert detail in problem.detail


@pytest.mark.parametrize(
    "fixed",
    [
        {"batch_size": 100, "num_splits": 20},
        {"batch_size": 512, "num_splits": 4},
        {"num_splits": 128},
        {"batch_size": 2, "num_splits": 1},
    ],
)
def test_splits_are_judged_by_the_batch_they_stand_beside(fixed: dict[str, Any]) -> None:
    assert parse(SearchSpace, space(fixed=fixed)).trial_config({"temperature": 0.5}).batch_size >= 2


def test_every_pair_of_batch_size_and_splits_is_judged() -> None:
    def pair(batch_sizes: list[int], splits: list[int]) -> dict[str, Any]:
        choices = {"batch_size": batch_sizes, "num_splits": splits}
        return {"parameters": {n: {"type": "categorical", "choices": c} for n, c in choices.items()}}

    assert parse(SearchSpace, pair([96, 192], [3, 4]))
    (problem,) = problems(SearchSpace, pair([96, 128], [3, 4]))
    assert problem.pointer == "/parameters/num_splits"
    assert "num_splits 3 does not divide batch_size 128" in problem.detail


def test_fields_are_judged_together_only_where_both_are_active() -> None:
    found = parse(
        SearchSpace,
        {
            "parameters": {
                "base": {"type": "categorical", "choices": ["simclr", "moco", "barlow_twins"]},
                "objective": {
                    "type": "categorical",
                    "choices": ["infonce", "uniformity", "none"],
                    "when": {"base": "simclr"},
                },
                "batch_size": {"type": "categorical", "choices": [128, 8192], "when": {"base": "simclr"}},
                "queue_size": {"type": "int", "low": 256, "high": 512, "when": {"base": "moco"}},
                "redundancy_weight": {
                    "type": "float",
                    "low": 0.001,
                    "high": 0.1,
                    "when": {"base": "barlow_twins"},
                },
            },
        },
    )
    assert found.trial_config({"base": "moco", "queue_size": 300}).queue_size == 300
    (problem,) = problems(
        SearchSpace, json.loads(found.model_dump_json(exclude_none=True)) | {"fixed": {"num_splits": 3}}
    )
    assert problem.pointer == "/fixed/num_splits"


@pytest.mark.parametrize(
    ("name", "high"), [("warmup_epochs", 10**30), ("knn_neighbors", 10**400), ("num_splits", 10**9)]
)
def test_whole_numbers_have_bounds(name: str, high: int) -> None:
    (problem, *_) = problems(SweepSpec, sweep(space=space(fixed={name: high})))
    assert problem.pointer == f"/space/fixed/{name}"
    assert "less than or equal" in problem.detail


# --- baselines and conditions -------------------------------------------------------------------------------


def test_a_baseline_may_lie_outside_the_space_and_is_filled_with_defaults() -> None:
    found = parse(
        SearchSpace,
        {
            "parameters": {
                "equivariance_weight": {
                    "type": "float",
                    "low": 0.01,
                    "high": 10,
                    "log": True,
                    "default": 0.3,
                },
                "optimizer": OPTIMIZER | {"default": "sgd"},
                "learning_rate": {
                    "type": "float",
                    "low": 0.1,
                    "high": 1,
                    "default": 0.5,
                    "when": {"optimizer": "sgd"},
                },
                "weight_decay": {"type": "float", "low": 0, "high": 1, "when": {"optimizer": "adam"}},
            },
            "baselines": [
                {"equivariance_weight": 0.0},
                {"equivariance_weight": 0.0, "optimizer": "adam", "weight_decay": 0.5},
                {"temperature": 0.7, "learning_rate": 3},
            ],
        },
    )
    filled = [found.baseline_values(baseline) for baseline in found.baselines]
    assert filled == [
        {"equivariance_weight": 0.0, "optimizer": "sgd", "learning_rate": 0.5},
        {"equivariance_weight": 0.0, "optimizer": "adam", "weight_decay": 0.5},
        {"equivariance_weight": 0.3, "optimizer": "sgd", "temperature": 0.7, "learning_rate": 3},
    ]
    assert [found.trial_config(values).equivariance_weight for values in filled] == [0.0, 0.0, 0.3]


def test_a_configuration_joins_fixed_values_and_seed() -> None:
    found = parse(SearchSpace, space(fixed={"epochs": 3, "dataset": "cifar10"}))
    config = found.trial_config({"temperature": 0.2}, seed=5)
    assert config == TrialConfig(dataset="cifar10", epochs=3, temperature=0.2, seed=5)
    with pytest.raises(InvalidDocument, match="/temperature: should be a valid number"):
        found.trial_config({"temperature": "warm"})
