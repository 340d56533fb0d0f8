"""Which fields of a trial are searched, and is the document that says so sound?"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, create_model, field_validator, model_validator
from pydantic_core import PydanticCustomError

from care_sweep.documents import Document, parse, pointer, problems_of, shorten, unknown
from care_sweep.errors import Problem
from care_sweep.spec.config import FIELD_RULES, NEVER_SEARCHED, FieldRule, TrialConfig
from care_sweep.spec.parameters import CategoricalParameter, FloatParameter, IntParameter, Parameter, Scalar

__all__ = ["SearchSpace"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SearchSpace(Document):
    """Which fields of `TrialConfig` are searched, which are fixed, and which points are run first.

    A parameter's `when` may name only categorical parameters that stand above it. Baselines may lie outside
    the ranges; what they omit comes from each parameter's `default`.
    """

    name: str = Field("inline", max_length=100)
    description: str = Field("", max_length=2000)
    parameters: dict[str, Parameter] = Field(
        min_length=1, max_length=100, description="fields that are searched, by name"
    )
    fixed: dict[str, Scalar] = Field(
        default_factory=dict, max_length=100, description="fields with one value for all trials"
    )
    baselines: list[Annotated[dict[str, Scalar], Field(max_length=100)]] = Field(
        default_factory=list, max_length=100, description="values of searched fields, a trial each"
    )

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            detail = "use letters, digits, dots, dashes and underscores, the first a letter or a digit"
            raise PydanticCustomError("name", detail)
        return value

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        problems = [*self._name_problems(), *self._condition_problems()]
        if not problems:
            problems = [*self._value_problems()]
        if not problems:
            problems = [found for rule in FIELD_RULES for found in self._rule_problems(*rule)]
        if not problems:
            problems = [*self._baseline_problems()]
        if problems:
            raise PydanticCustomError("problems", "the search space is unsound", {"problems": problems})
        return self

    def trial_config(self, values: Mapping[str, Scalar], seed: int = 0) -> TrialConfig:
        """The configuration of a trial with these sampled values; inactive parameters keep their defaults.

        Raises:
            InvalidDocument: the values and the fixed part do not make a configuration.
        """
        return parse(TrialConfig, {**self.fixed, **values, "seed": seed})

    def baseline_values(self, baseline: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The baseline with each active parameter that it omits at its default."""
        values = dict(baseline)
        for name, parameter in self.parameters.items():
            if name not in values and parameter.default is not None and parameter.is_active(values):
                values[name] = parameter.default
        return values

    def values_of(self, name: str) -> list[Scalar]:
        """What a field may be in a trial, of a range its ends: searched, fixed or by default, or a
        baseline's."""
        default = TrialConfig.model_fields[name].default
        candidates = self._candidates(name, self.fixed.get(name, default))
        values = [default if value is None else value for value in candidates]
        return [*values, *(baseline[name] for baseline in self.baselines if name in baseline)]

    def _name_problems(self) -> Iterator[Problem]:
        searchable = [name for name in TrialConfig.model_fields if name not in NEVER_SEARCHED]
        fixable = [name for name in TrialConfig.model_fields if name != "seed"]
        for name in self.parameters:
            if name in NEVER_SEARCHED:
                detail = f"{name} is the same for all trials of a sweep: " + (
                    "give it as the sweep's seed" if name == "seed" else "put it under fixed"
                )
                yield Problem(pointer("parameters", name), detail)
            elif name not in searchable:
                yield Problem(pointer("parameters", name), unknown(name, searchable))
        for name in self.fixed:
            if name in self.parameters:
                yield Problem(pointer("fixed", name), "also stands under parameters; keep one of the two")
            elif name not in fixable:
                yield Problem(pointer("fixed", name), unknown(name, fixable))
        for index, baseline in enumerate(self.baselines):
            for name in baseline:
                if name not in searchable:
                    yield Problem(pointer("baselines", index, name), unknown(name, searchable))

    def _condition_problems(self) -> Iterator[Problem]:
        above: dict[str, FloatParameter | IntParameter | CategoricalParameter] = {}
        for name, parameter in self.parameters.items():
            for parent, wanted in (parameter.when or {}).items():
                place = pointer("parameters", name, "when", parent)
                other = above.get(parent)
                if parent not in self.parameters:
                    yield Problem(place, unknown(parent, list(self.parameters)))
                elif other is None:
                    yield Problem(place, f"must stand above {name!r}: move {parent!r} up")
                elif not isinstance(other, CategoricalParameter):
                    yield Problem(place, f"{parent!r} must be categorical, it is {other.type}")
                else:
                    for value in wanted if isinstance(wanted, list) else [wanted]:
                        if value not in other.choices:
                            yield Problem(place, f"must be among {other.choices}", shorten(value))
            above[name] = parameter

    def _value_problems(self) -> Iterator[Problem]:
        """Both ends of every range and every fixed value must be values `TrialConfig` takes."""
        for name, value in self.fixed.items():
            yield from _field_problems(name, value, pointer("fixed", name))
        for name, parameter in self.parameters.items():
            if name in ("batch_size", "num_splits") and not isinstance(parameter, CategoricalParameter):
                detail = f"{name} must be categorical, for batch_size to be a multiple of num_splits"
                yield Problem(pointer("parameters", name, "type"), detail, parameter.type)
                continue
            if isinstance(parameter, FloatParameter) and TrialConfig.model_fields[name].annotation is int:
                yield Problem(
                    pointer("parameters", name, "type"), f"{name} is a whole number: use int", "float"
                )
                continue
            for key, value in parameter.edge_values():
                yield from _field_problems(name, value, pointer("parameters", name) + "/" + key)

    def _rule_problems(self, names: Sequence[str], rule: FieldRule) -> Iterator[Problem]:
        """The first combination of values that breaks a rule among fields, blamed on a field of the document.

        Of a range its ends are tried, which is enough for rules that are monotone in it.
        """
        defaults = {name: TrialConfig.model_fields[name].default for name in names}
        candidates = [self._candidates(name, self.fixed.get(name, defaults[name])) for name in names]
        for combination in itertools.product(*candidates):
            values = dict(zip(names, combination, strict=True))
            if any(not self._may_be(name, value, values) for name, value in values.items()):
                continue
            found = rule(defaults | {name: value for name, value in values.items() if value is not None})
            if found is not None:
                name = next(n for n in names if n in {**self.fixed, **self.parameters})
                section = "parameters" if name in self.parameters else "fixed"
                yield Problem(pointer(section, name), found.message())
                return

    def _candidates(self, name: str, otherwise: Scalar) -> list[Scalar | None]:
        """Values a field can take; None where its parameter is inactive, and the default stands."""
        if name not in self.parameters:
            return [otherwise]
        parameter = self.parameters[name]
        values = [value for _, value in parameter.edge_values()]
        return [*values, None] if parameter.when else [*values]

    def _may_be(self, name: str, value: Scalar | None, values: Mapping[str, Scalar | None]) -> bool:
        """Whether a parameter can be active (inactive, for None) beside these values of other fields.

        A condition on a field that is not among them is taken to hold.
        """
        parameter = self.parameters.get(name)
        if parameter is None or parameter.when is None:
            return True
        known = {parent: wanted for parent, wanted in parameter.when.items() if parent in values}
        holds = all(
            values[parent] in (wanted if isinstance(wanted, list) else [wanted])
            for parent, wanted in known.items()
        )
        return holds == (value is not None)

    def _baseline_problems(self) -> Iterator[Problem]:
        for index, baseline in enumerate(self.baselines):
            values = self.baseline_values(baseline)
            missing = [n for n, p in self.parameters.items() if n not in values and p.is_active(values)]
            if missing:
                detail = f"omits {', '.join(missing)}: give a value here or a default to the parameter"
                yield Problem(pointer("baselines", index), detail)
                continue
            try:
                TrialConfig.model_validate({**self.fixed, **values})
            except ValidationError as error:
                for problem in problems_of(error, {**self.fixed, **values}):
                    yield Problem(
                        pointer("baselines", index) + problem.pointer, problem.detail, problem.value
                    )


def _field_problems(name: str, value: Scalar, place: str) -> Iterator[Problem]:
    """What is wrong with a value by itself; whether it fits the others is asked where all are known."""
    try:
        _Fields.model_validate({name: value})
    except ValidationError as error:
        for problem in problems_of(error, {name: value}):
            yield Problem(place, problem.detail, problem.value)


_DEFINITIONS: dict[str, Any] = {
    name: (field.annotation, field) for name, field in TrialConfig.model_fields.items()
}
_Fields = create_model("_Fields", __base__=Document, **_DEFINITIONS)
"""`TrialConfig` without its rules among fields."""
