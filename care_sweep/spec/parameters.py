"""From what may a searched field take its values?"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from care_sweep.documents import Document

__all__ = ["CategoricalParameter", "FloatParameter", "IntParameter", "Parameter", "Scalar"]


def _is_scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "should be a finite number")
    if not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("scalar", "should be a number, a string, true or false")
    return value


Scalar = Annotated[bool | int | float | str, BeforeValidator(_is_scalar)]


class _Conditional(Document):
    when: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] | None = Field(
        None, description="active only where these categorical parameters have these values"
    )

    def is_active(self, values: Mapping[str, Scalar]) -> bool:
        return self.when is None or all(
            name in values and values[name] in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in self.when.items()
        )


class _Range(_Conditional):
    @model_validator(mode="after")
    def _range_is_sound(self) -> Self:
        low, high, log = (getattr(self, name) for name in ("low", "high", "log"))
        default = getattr(self, "default")  # noqa: B009  (declared by the subclasses, int or float)
        if low >= high:
            raise PydanticCustomError(
                "empty_range", "low {low} must be below high {high}", {"low": low, "high": high, "key": "low"}
            )
        if log and low <= 0:
            raise PydanticCustomError(
                "log_at_zero",
                "a log scale needs low above 0; set low to a small positive number or leave out log, "
                "and put 0 itself under baselines",
                {"key": "low"},
            )
        if default is not None and not low <= default <= high:
            raise PydanticCustomError(
                "default_outside",
                "the default must lie in [{low}, {high}]",
                {"low": low, "high": high, "key": "default"},
            )
        return self

    def edge_values(self) -> Iterator[tuple[str, Scalar]]:
        """The keys of the document that bound the range, with their values."""
        yield "low", getattr(self, "low")  # noqa: B009
        yield "high", getattr(self, "high")  # noqa: B009


_Log = Annotated[bool, Field(description="searched evenly in the logarithm; low must be above 0")]
_DEFAULT = Field(description="its value in baselines and enqueued points that leave it out")


class FloatParameter(_Range):
    """A number from `low` to `high`."""

    type: Literal["float"]
    low: float
    high: float
    log: _Log = False
    default: Annotated[float | None, _DEFAULT] = None


class IntParameter(_Range):
    """A whole number from `low` to `high`, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: _Log = False
    default: Annotated[int | None, _DEFAULT] = None


class CategoricalParameter(_Conditional):
    """One of some values, which have no order."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1, max_length=100)
    default: Annotated[Scalar | None, _DEFAULT] = None

    @model_validator(mode="after")
    def _choices_are_sound(self) -> Self:
        if len(set(self.choices)) < len(self.choices):  # 1, 1.0 and true are one choice, to Optuna too
            raise PydanticCustomError("repeated_choice", "a choice stands twice", {"key": "choices"})
        if self.default is not None and self.default not in self.choices:
            raise PydanticCustomError(
                "default_outside", "the default must be one of the choices", {"key": "default"}
            )
        return self

    def edge_values(self) -> Iterator[tuple[str, Scalar]]:
        for index, choice in enumerate(self.choices):
            yield f"choices/{index}", choice


Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]
