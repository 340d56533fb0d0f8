"""How does a search space read to Optuna? What it may suggest, and what it did when a trial is replayed."""

from collections.abc import Iterable, Iterator, Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from care_sweep.documents import pointer, shorten, unknown
from care_sweep.errors import InvalidDocument, Problem
from care_sweep.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, Scalar, SearchSpace

__all__ = [
    "distributions",
    "distributions_inside",
    "distributions_of_each",
    "suggest",
    "unconditional_distributions",
]


def suggest(space: SearchSpace, trial: optuna.trial.BaseTrial) -> dict[str, Scalar]:
    """A value for each parameter that is active, drawn by `trial` in the order of the space.

    Define by run: a parameter whose `when` does not hold is neither drawn nor returned.
    """
    values: dict[str, Scalar] = {}
    for name, parameter in space.parameters.items():
        if parameter.is_active(values):
            values[name] = _draw(trial, name, parameter)
    return values


def distributions(space: SearchSpace, values: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
    """The distributions that `suggest` would have drawn these values from, one for each value.

    Raises:
        InvalidDocument: a value lies outside its range, an active parameter is missing, or a value belongs
            to no parameter that is active: the values come from another space than this one.
    """
    return next(distributions_of_each(space, [values]))


def distributions_of_each(
    space: SearchSpace, points: Iterable[Mapping[str, Scalar]]
) -> Iterator[dict[str, BaseDistribution]]:
    """As `distributions` of one point after the other; a parameter has the same distribution in all of them.

    Raises:
        InvalidDocument: as `distributions`, when it comes to that point.
    """
    every = {name: _distribution(parameter) for name, parameter in space.parameters.items()}
    for values in points:
        problems = list(_problems(space, values))
        if problems:
            raise InvalidDocument(problems)
        yield {name: every[name] for name in values}


def distributions_inside(space: SearchSpace, values: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
    """The distributions of those values that lie in the space; a baseline may have others."""
    return {
        name: _distribution(parameter)
        for name, parameter in space.parameters.items()
        if name in values and parameter.is_active(values) and _contains(parameter, values[name])
    }


def unconditional_distributions(space: SearchSpace) -> dict[str, BaseDistribution] | None:
    """What every trial draws several values from, by name; None where some draw less than others."""
    if any(parameter.when for parameter in space.parameters.values()):
        return None
    every = {name: _distribution(parameter) for name, parameter in sorted(space.parameters.items())}
    return {name: distribution for name, distribution in every.items() if not distribution.single()}


def _draw(trial: optuna.trial.BaseTrial, name: str, parameter: Parameter) -> Scalar:
    match parameter:
        case FloatParameter():
            return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
        case IntParameter():
            return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)
        case CategoricalParameter():
            choice = trial.suggest_categorical(name, parameter.choices)
            assert choice is not None  # a Scalar is never None, Optuna's choice may be
            return choice


def _distribution(parameter: Parameter) -> BaseDistribution:
    match parameter:
        case FloatParameter():
            return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        case IntParameter():
            return IntDistribution(parameter.low, parameter.high, log=parameter.log)
        case CategoricalParameter():
            return CategoricalDistribution(parameter.choices)


def _problems(space: SearchSpace, values: Mapping[str, Scalar]) -> Iterator[Problem]:
    for name in values:
        if name not in space.parameters:
            yield Problem(pointer(name), unknown(name, list(space.parameters)))
    for name, parameter in space.parameters.items():
        if not parameter.is_active(values):
            if name in values:
                yield Problem(pointer(name), f"is given, but active only when {parameter.when}")
        elif name not in values:
            yield Problem(pointer(name), "is missing")
        elif not _contains(parameter, values[name]):
            yield Problem(pointer(name), f"must be {_extent(parameter)}", shorten(values[name]))


def _contains(parameter: Parameter, value: Scalar) -> bool:
    if isinstance(parameter, CategoricalParameter):
        return value in parameter.choices
    wanted = int if isinstance(parameter, IntParameter) else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        return False
    return parameter.low <= value <= parameter.high


def _extent(parameter: Parameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return f"among {parameter.choices}"
    return f"a {parameter.type} in [{parameter.low}, {parameter.high}]"
