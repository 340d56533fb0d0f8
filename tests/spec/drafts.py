"""Documents to be changed in one place, and what is said of one that is refused."""

from typing import Any

import pytest

from care_sweep.documents import parse
from care_sweep.errors import InvalidDocument, Problem

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
