"""A parameter is refused with its place, and active where its condition holds."""

import math
from typing import Any

import pytest
from drafts import TEMPERATURE, parameter, problems, sweep

from care_sweep.spec import FloatParameter, SweepSpec

BAD_PARAMETERS = {
    "unknown key of a parameter": (
        parameter(**TEMPERATURE, lg=True),
        "/space/parameters/temperature/lg",
        "did you mean 'log'?",
    ),
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
    "choice that is a list": (
        parameter(type="categorical", choices=[[0.1]]),
        "/space/parameters/temperature/choices/0",
        "should be a number, a string, true or false",
    ),
}


@pytest.mark.parametrize(
    ("document", "pointer", "detail"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS.keys()
)
def test_a_bad_parameter_is_refused_at_its_place(document: Any, pointer: str, detail: str) -> None:
    (problem,) = problems(SweepSpec, document)
    assert problem.pointer == pointer
    assert detail in problem.detail


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
