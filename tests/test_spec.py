"""The vocabulary accepts what is sound and refuses the rest with the exact place and what would work."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from care_sweep.documents import parse
from care_sweep.errors import InvalidDocument, Problem
from care_sweep.spec import (
    CategoricalParameter,
    CheckpointReference,
    FloatParameter,
    IntParameter,
    Measurement,
    SearchSpace,
    SweepSpec,
    SweepState,
    TrialConfig,
    TrialState,
)

TEMPERATURE = {"type": "float", "low": 0.1, "high": 1.0}
OPTIMIZER = {"type": "categorical", "choices": ["adam", "sgd"]}


def space(**parts: Any) -> dict[str, Any]:
    return {"parameters": {"temperature": TEMPERATURE}} | parts


def sweep(**parts: Any) -> dict[str, Any]:
    return {"name": "first-look", "space": space(), "num_trials": 4} | parts


def parameter(name: str = "temperature", **parts: Any) -> dict[str, Any]:
    return sweep(space={"parameters": {name: parts}})


def conditional(when: Any, **more: Any) -> dict[str, Any]:
    return sweep(
        space={"parameters": {"optimizer": OPTIMIZER, "temperature": TEMPERATURE | {"when": when}} | more}
    )


def problems(model: Any, document: Any) -> list[Problem]:
    with pytest.raises(InvalidDocument) as caught:
        parse(model, document)
    return list(caught.value.problems)


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
    "unknown key in the space": (
        sweep(space=space(paramters={})),
        "/space/paramters",
        "did you mean 'parameters'",
    ),
    "unknown key of a parameter": (
        parameter(**TEMPERATURE, lg=True),
        "/space/parameters/temperature/lg",
        "did you mean 'log'?",
    ),
    "unknown key that needs escapes": (sweep(**{"a/b~c": 1}), "/a~1b~0c", "known are name, space"),
    "missing name": ({"space": space(), "num_trials": 4}, "/name", "is required"),
    "no document": (None, "", "must be a mapping with keys of name, space"),
    "a list": ([], "", "must be a mapping with keys of name, space"),
    "low above high": (
        parameter(type="float", low=1, high=0.1),
        "/space/parameters/temperature/low",
        "low 1.0 must be below high 0.1",
    ),
    "low equals high": (
        parameter("warmup_epochs", type="int", low=3, high=3),
        "/space/parameters/warmup_epochs/low",
        "low 3 must be below high 3",
    ),
    "log at 0": (
        parameter("equivariance_weight", type="float", low=0, high=1, log=True),
        "/space/parameters/equivariance_weight/low",
        "set low to a small positive number or leave out log, and put 0 itself under baselines",
    ),
    "log of int at 0": (
        parameter("warmup_epochs", type="int", low=0, high=8, log=True),
        "/space/parameters/warmup_epochs/low",
        "a log scale needs low above 0",
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
    "NaN in a range": (
        parameter(type="float", low=math.nan, high=1),
        "/space/parameters/temperature/low",
        "finite number",
    ),
    "infinity in a range": (
        parameter(type="float", low=0.1, high=math.inf),
        "/space/parameters/temperature/high",
        "finite number",
    ),
    "NaN as a default": (
        parameter(**TEMPERATURE, default=math.nan),
        "/space/parameters/temperature/default",
        "finite number",
    ),
    "NaN among choices": (
        parameter(type="categorical", choices=[0.1, math.nan]),
        "/space/parameters/temperature/choices/1",
        "finite number",
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
    "infinite budget": (sweep(budget={"max_seconds": math.inf}), "/budget/max_seconds", "finite number"),
    "no budget in the budget": (sweep(budget={}), "/budget/max_seconds", "is required"),
    "empty space": (sweep(space={"parameters": {}}), "/space/parameters", "at least 1 item"),
    "no parameters": (sweep(space={}), "/space/parameters", "is required"),
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
    "two GPUs a trial": (
        sweep(resources={"gpus_per_trial": 2}),
        "/resources/gpus_per_trial",
        "must be auto, or between 0 and 1",
    ),
    "no CPU": (sweep(resources={"cpus_per_trial": 0}), "/resources/cpus_per_trial", "equal to 1"),
    "unknown type": (
        parameter(type="flaot", low=0.1, high=1),
        "/space/parameters/temperature/type",
        "must be one of 'float', 'int', 'categorical'",
    ),
    "no type": (parameter(low=0.1, high=1), "/space/parameters/temperature/type", "must be one of 'float'"),
    "parameter is a number": (
        sweep(space={"parameters": {"temperature": 3}}),
        "/space/parameters/temperature",
        "a mapping",
    ),
    "default outside": (
        parameter(**TEMPERATURE, default=2),
        "/space/parameters/temperature/default",
        "the default must lie in [0.1, 1.0]",
    ),
    "default is no choice": (
        parameter("encoder", type="categorical", choices=["resnet18"], default="resnet50"),
        "/space/parameters/encoder/default",
        "one of the choices",
    ),
    "no choice": (
        parameter("encoder", type="categorical", choices=[]),
        "/space/parameters/encoder/choices",
        "at least 1 item",
    ),
    "a choice twice": (
        parameter("encoder", type="categorical", choices=["resnet18", "resnet18"]),
        "/space/parameters/encoder/choices",
        "a choice stands twice",
    ),
    "equal choices": (
        parameter("num_splits", type="categorical", choices=[1, 1.0]),
        "/space/parameters/num_splits/choices",
        "a choice stands twice",
    ),
    "choice that is no value": (
        parameter("encoder", type="categorical", choices=["resnet18", "vit"]),
        "/space/parameters/encoder/choices/1",
        "should be 'resnet_tiny', 'resnet18' or 'resnet50'",
    ),
    "choice that is a list": (
        parameter(type="categorical", choices=[[0.1]]),
        "/space/parameters/temperature/choices/0",
        "should be a number, a string, true or false",
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


def test_the_new_options_stay_at_what_documents_meant_before_them() -> None:
    config = TrialConfig()
    assert (config.base, config.objective) == ("simclr", "infonce")
    assert (config.augmentation_scope, config.batch_norm) == ("split", "per_view")


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


@pytest.mark.parametrize(
    ("when", "values", "is_active"),
    [
        (None, {}, True),
        ({"optimizer": "sgd"}, {"optimizer": "sgd"}, True),
        ({"optimizer": "sgd"}, {"optimizer": "adam"}, False),
        ({"optimizer": "sgd"}, {}, False),
        ({"optimizer": ["adam", "sgd"]}, {"optimizer": "adam"}, True),
        ({"optimizer": "sgd", "batch_size": 64}, {"optimizer": "sgd", "batch_size": 32}, False),
        ({"optimizer": "sgd", "batch_size": 64}, {"optimizer": "sgd", "batch_size": 64}, True),
    ],
)
def test_a_condition_holds_where_all_its_parts_do(when: Any, values: dict[str, Any], is_active: bool) -> None:
    assert FloatParameter(type="float", low=0, high=1, when=when).is_active(values) is is_active


def test_a_configuration_joins_fixed_values_and_seed() -> None:
    found = parse(SearchSpace, space(fixed={"epochs": 3, "dataset": "cifar10"}))
    config = found.trial_config({"temperature": 0.2}, seed=5)
    assert config == TrialConfig(dataset="cifar10", epochs=3, temperature=0.2, seed=5)
    with pytest.raises(InvalidDocument, match="/temperature: should be a valid number"):
        found.trial_config({"temperature": "warm"})


# --- trials, measurements, states ---------------------------------------------------------------------------


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
        ({"lr": 0.1}, "/lr", "unknown"),
        ({"dataset": ""}, "/dataset", "at least 1 character"),
    ],
)
def test_a_bad_configuration_is_refused(document: Any, pointer: str, detail: str) -> None:
    (problem,) = problems(TrialConfig, document)
    assert (problem.pointer, detail in problem.detail) == (pointer, True)


def test_a_measurement_is_finite_and_its_checkpoint_named() -> None:
    checkpoint = {"name": "attempt-1/final.tar", "sha256": "0" * 64, "size_bytes": 1}
    document = {"epoch": 1, "metrics": {"train_loss": 1.5}, "seconds": 0.2, "checkpoint": checkpoint}
    measurement = parse(Measurement, document)
    assert measurement.checkpoint == CheckpointReference(**checkpoint)
    assert parse(Measurement, json.loads(measurement.model_dump_json())) == measurement
    (problem,) = problems(Measurement, document | {"metrics": {"train_loss": math.nan}})
    assert (problem.pointer, problem.value) == ("/metrics/train_loss", "nan")
    (problem,) = problems(Measurement, document | {"checkpoint": checkpoint | {"sha256": "ABC"}})
    assert problem.pointer == "/checkpoint/sha256"


def test_states_are_terminal_or_not() -> None:
    assert {state for state in SweepState if state.is_terminal} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert {state for state in TrialState if not state.is_terminal} == {"WAITING", "RUNNING"}


# --- any document at all ------------------------------------------------------------------------------------

_words = st.sampled_from(
    [
        *SweepSpec.model_fields,
        *SearchSpace.model_fields,
        *TrialConfig.model_fields,
        *("type", "low", "high", "log", "choices", "when", "default"),
        *("float", "int", "categorical", "none", "auto"),
    ]
)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _words
_documents = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_words | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
_ranges = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "int"])},
    optional={
        key: _scalars | st.floats(0, 10) | st.integers(0, 10) for key in ("low", "high", "default", "log")
    }
    | {"when": _documents},
)
_choices = st.fixed_dictionaries(
    {"type": st.just("categorical"), "choices": st.lists(_scalars, max_size=4)},
    optional={
        "default": _scalars,
        "when": st.dictionaries(_words, _scalars | st.lists(_scalars), max_size=2),
    },
)
_spaces = st.fixed_dictionaries(
    {"parameters": st.dictionaries(_words, _ranges | _choices | _documents, max_size=4)},
    optional={
        "fixed": st.dictionaries(_words, _scalars, max_size=3) | _documents,
        "baselines": st.lists(st.dictionaries(_words, _scalars, max_size=3), max_size=3) | _documents,
    },
)
_sweeps = st.fixed_dictionaries(
    {"name": st.just("s"), "space": _spaces | _documents, "num_trials": st.integers(0, 9) | _documents},
    optional=dict.fromkeys(("metric", "seed", "early_stopping", "resources", "budget"), _documents),
)


def is_place(document: Any, pointer: str) -> bool:
    """The pointer leads to something in the document, or to a key that is missing from it."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]] or [None]
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return last is None or isinstance(document, dict) or int(last) < len(document)


@given(_sweeps | _documents)
def test_any_document_is_accepted_or_refused_with_its_places(document: Any) -> None:
    try:
        spec = parse(SweepSpec, document)
    except InvalidDocument as error:
        assert error.problems
        assert all(problem.detail for problem in error.problems)
        json.dumps([problem.to_json() for problem in error.problems])
    else:
        assert parse(SweepSpec, json.loads(spec.model_dump_json())) == spec
        for baseline in spec.space.baselines:
            spec.space.trial_config(spec.space.baseline_values(baseline))


@given(_sweeps)
def test_every_pointer_leads_into_the_document(document: Any) -> None:
    try:
        parse(SweepSpec, document)
    except InvalidDocument as error:
        for problem in error.problems:
            assert is_place(document, problem.pointer), problem


@pytest.mark.parametrize(
    ("name", "high"), [("warmup_epochs", 10**30), ("knn_neighbors", 10**400), ("num_splits", 10**9)]
)
def test_whole_numbers_have_bounds(name: str, high: int) -> None:
    (problem, *_) = problems(SweepSpec, sweep(space=space(fixed={name: high})))
    assert problem.pointer == f"/space/fixed/{name}"
    assert "less than or equal" in problem.detail


def test_a_warm_up_fits_into_the_epochs() -> None:
    (problem,) = problems(TrialConfig, {"epochs": 3, "warmup_epochs": 4})
    assert problem.pointer == "/warmup_epochs"
    assert "does not fit" in problem.detail
