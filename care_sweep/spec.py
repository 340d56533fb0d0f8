"""The vocabulary: what a sweep is, what may be searched, what a trial is told and what it answers.

Every document is a frozen pydantic model. Nothing here reads a clock, a file or an environment.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from care_sweep.documents import Document, parse, pointer, problems_of, shorten, unknown
from care_sweep.errors import Problem

__all__ = [
    "METRICS",
    "Budget",
    "CategoricalParameter",
    "CheckpointReference",
    "EarlyStopping",
    "FloatParameter",
    "IntParameter",
    "Measurement",
    "Parameter",
    "Resources",
    "Scalar",
    "SearchSpace",
    "SweepSpec",
    "SweepState",
    "TrialConfig",
    "TrialState",
]


def _is_scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "should be a finite number")
    if not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("scalar", "should be a number, a string, true or false")
    return value


Scalar = Annotated[bool | int | float | str, BeforeValidator(_is_scalar)]

METRICS = ("validation_knn_accuracy", "validation_probe_accuracy")
"""What a sweep may maximise. Training losses are refused: their scale moves with temperature and weight."""


class SweepState(StrEnum):
    """Where a sweep stands. SUCCEEDED, FAILED and CANCELLED are ends."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self in (SweepState.SUCCEEDED, SweepState.FAILED, SweepState.CANCELLED)


class TrialState(StrEnum):
    """Where a trial stands. A terminal state never changes; only COMPLETE trials rank."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"
    INFEASIBLE = "INFEASIBLE"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self not in (TrialState.WAITING, TrialState.RUNNING)


# --- one trial ----------------------------------------------------------------------------------------------


class TrialConfig(Document):
    """Everything one trial is told; two equal configurations on one machine train the same weights.

    `equivariance_weight` is on our scale: the loss is a mean over ordered pairs, so
    lambda_ours = lambda_published * 2 * (batch_size / num_splits - 1).
    """

    dataset: str = Field("cifar10-mini", min_length=1, max_length=1024)
    resize: int | None = Field(None, ge=8, le=512, description="side in pixels, for images of mixed size")
    encoder: Literal["resnet_tiny", "resnet18", "resnet50"] = "resnet18"
    epochs: int = Field(100, ge=1, le=10_000)
    batch_size: int = Field(256, ge=2, le=16_384, description="images a step; each gives two views")
    num_splits: int = Field(16, ge=1, le=8192, description="groups of images that share an augmentation")
    equivariance_weight: float = Field(0.3, ge=0, le=1e6)
    temperature: float = Field(0.5, ge=1e-3, le=100)
    augmentation_strength: float = Field(1.0, ge=0, le=2)
    base: Literal["simclr", "moco", "barlow_twins"] = Field(
        "simclr", description="the contrastive method, with or without L_equi"
    )
    objective: Literal["infonce", "alignment", "uniformity", "none"] = Field(
        "infonce", description="infonce is the whole loss of the base; others leave terms out (Section 5.2)"
    )
    augmentation_scope: Literal["split", "batch"] = Field(
        "split", description="who shares an augmentation in L_equi; batch is the published code"
    )
    batch_norm: Literal["per_view", "joint"] = Field(
        "per_view", description="statistics of each view group, as published, or of all views of a step"
    )
    queue_size: int = Field(4096, ge=2, le=2**20, description="keys that MoCo compares with")
    key_encoder_momentum: float = Field(
        0.99, ge=0, lt=1, description="share of its weights that MoCo's key encoder keeps each step"
    )
    redundancy_weight: float = Field(
        0.0051, ge=0, le=1e3, description="Barlow Twins' weight of what is off the diagonal"
    )
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=100)
    weight_decay: float = Field(1e-6, ge=0, le=10)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = Field(0, ge=0, le=10_000)
    knn_neighbors: int = Field(
        200, ge=1, le=1_000_000, description="k of the weighted kNN (capped at the size of train)"
    )
    probe_epochs: int = Field(100, ge=1, le=10_000, description="epochs of the linear probe")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        for _, problem in _FIELD_RULES:
            found = problem({name: getattr(self, name) for name in type(self).model_fields})
            if found is not None:
                raise found
        return self


def _splits_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    batch_size, num_splits = values["batch_size"], values["num_splits"]
    if batch_size % num_splits:
        return PydanticCustomError(
            "indivisible",
            "num_splits {splits} does not divide batch_size {batch}; {suggestion} would",
            {
                "splits": num_splits,
                "batch": batch_size,
                "suggestion": _nearest_divisor(batch_size, num_splits),
                "key": "num_splits",
            },
        )
    if batch_size // num_splits < 2:
        return PydanticCustomError(
            "lonely_split",
            "a split needs 2 images to have a pair: with batch_size {batch}, use at most {most} splits",
            {"batch": batch_size, "most": batch_size // 2, "key": "num_splits"},
        )
    return None


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number // 2 + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def _warmup_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["warmup_epochs"] <= values["epochs"]:
        return None
    return PydanticCustomError(
        "long_warmup",
        "a warm-up of {warmup} epochs does not fit into {epochs}",
        {"warmup": values["warmup_epochs"], "epochs": values["epochs"], "key": "warmup_epochs"},
    )


def _queue_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["base"] != "moco" or values["queue_size"] >= values["batch_size"]:
        return None
    return PydanticCustomError(
        "short_queue",
        "MoCo's queue takes in batch_size {batch} keys a step, so queue_size {queue} is too small: "
        "use {batch} or more",
        {"batch": values["batch_size"], "queue": values["queue_size"], "key": "queue_size"},
    )


def _objective_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["objective"] == "infonce" or values["base"] == "simclr":
        return None
    return PydanticCustomError(
        "terms_of_another_base",
        "objective {objective} leaves out terms of SimCLR's InfoNCE: use it with base simclr, "
        "or objective infonce, which is the whole loss of {base}",
        {"objective": values["objective"], "base": values["base"], "key": "objective"},
    )


def _nothing_to_train(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["objective"] != "none" or values["equivariance_weight"] > 0:
        return None
    return PydanticCustomError(
        "nothing_to_train",
        "objective none with equivariance_weight 0 leaves nothing to train: "
        "use a weight above 0, or another objective",
        {"key": "objective"},
    )


_FieldRule = Callable[[Mapping[str, Any]], PydanticCustomError | None]
_FIELD_RULES: tuple[tuple[tuple[str, ...], _FieldRule], ...] = (
    (("num_splits", "batch_size"), _splits_misfit),
    (("warmup_epochs", "epochs"), _warmup_misfit),
    (("queue_size", "batch_size", "base"), _queue_misfit),
    (("objective", "base"), _objective_misfit),
    (("objective", "equivariance_weight"), _nothing_to_train),
)
"""What must hold among fields: those a rule reads, the one to blame first, and what is wrong with them."""


_NEVER_SEARCHED = ("dataset", "resize", "epochs", "knn_neighbors", "probe_epochs", "seed")
"""They define what a measurement means, so all trials of a sweep share them."""


class CheckpointReference(Document):
    """A checkpoint that is durable: its name below the trial's directory, SHA-256 and size."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Measurement(Document):
    """What one epoch reported: finite metrics, its seconds with evaluation, perhaps a checkpoint."""

    epoch: int = Field(ge=1)
    metrics: dict[str, float]
    seconds: float = Field(ge=0)
    checkpoint: CheckpointReference | None = None


# --- the search space ---------------------------------------------------------------------------------------


class _Conditional(Document):
    when: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] | None = Field(
        None, description="active only where these categorical parameters have these values"
    )

    def is_active(self, values: Mapping[str, Scalar]) -> bool:
        return all(
            name in values and values[name] in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in (self.when or {}).items()
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


class FloatParameter(_Range):
    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    default: float | None = None


class IntParameter(_Range):
    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    default: int | None = None


class CategoricalParameter(_Conditional):
    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1, max_length=100)
    default: Scalar | None = None

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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SearchSpace(Document):
    """Which fields of `TrialConfig` are searched, which are fixed, and which points are run first.

    A parameter's `when` may name only categorical parameters that stand above it. Baselines may lie outside
    the ranges; what they omit comes from each parameter's `default`.
    """

    name: str = Field("inline", max_length=100)
    description: str = Field("", max_length=2000)
    parameters: dict[str, Parameter] = Field(min_length=1, max_length=100)
    fixed: dict[str, Scalar] = Field(default_factory=dict, max_length=100)
    baselines: list[Annotated[dict[str, Scalar], Field(max_length=100)]] = Field(
        default_factory=list, max_length=100
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
            problems = [found for rule in _FIELD_RULES for found in self._rule_problems(*rule)]
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

    def _name_problems(self) -> Iterator[Problem]:
        searchable = [name for name in TrialConfig.model_fields if name not in _NEVER_SEARCHED]
        fixable = [name for name in TrialConfig.model_fields if name != "seed"]
        for name in self.parameters:
            if name in _NEVER_SEARCHED:
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

    def _rule_problems(self, names: Sequence[str], rule: _FieldRule) -> Iterator[Problem]:
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
    try:
        TrialConfig.__pydantic_validator__.validate_assignment(TrialConfig.model_construct(), name, value)
    except ValidationError as error:
        if not error.errors()[0]["loc"]:
            return  # the value is sound by itself; whether it fits the others is asked where all are known
        for problem in problems_of(error, {name: value}):
            if problem.pointer == pointer(name):
                yield Problem(place, problem.detail, problem.value)


# --- the sweep ----------------------------------------------------------------------------------------------


class EarlyStopping(Document):
    """Asynchronous successive halving: at epochs grace * factor^k the best 1/factor go on."""

    grace_epochs: int = Field(5, ge=1, le=10_000)
    reduction_factor: int = Field(4, ge=2, le=100)


class Resources(Document):
    """What one trial holds while it runs; `auto` is one GPU where the cluster has any, else none."""

    cpus_per_trial: int = Field(1, ge=1, le=1024)
    gpus_per_trial: float | Literal["auto"] = "auto"

    @field_validator("gpus_per_trial")
    @classmethod
    def _fits_one_device(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 1:
            raise PydanticCustomError("gpus", "must be auto, or between 0 and 1: a trial runs on one GPU")
        return value


class Budget(Document):
    """What a sweep may spend; when it is spent, running trials are cancelled and the sweep succeeds.

    Seconds are wall-clock time since the sweep first ran, pauses included, looked at after each epoch.
    """

    max_seconds: float = Field(gt=0)


class SweepSpec(Document):
    """One sweep; `num_trials` counts the baselines, without `max_concurrent_trials` the cluster is filled."""

    name: str = Field(min_length=1, max_length=100)
    space: SearchSpace
    metric: str = "validation_knn_accuracy"
    num_trials: int = Field(ge=1, le=100_000)
    max_concurrent_trials: int | None = Field(None, ge=1, le=10_000)
    seed: int = Field(0, ge=0, lt=2**31)
    early_stopping: EarlyStopping | None = Field(default_factory=EarlyStopping)
    resources: Resources = Field(default_factory=Resources)
    budget: Budget | None = None

    @field_validator("name")
    @classmethod
    def _name_can_be_read(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise PydanticCustomError("name", "use printable characters, at least one of them not a space")
        return value

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("metric")
    @classmethod
    def _metric_can_rank(cls, value: str) -> str:
        if value not in METRICS:
            why = "training losses move with temperature and weight; " if "loss" in value else ""
            raise PydanticCustomError("metric", why + "use one of {metrics}", {"metrics": ", ".join(METRICS)})
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(self.space.baselines) > self.num_trials:
            raise PydanticCustomError(
                "too_few_trials",
                "num_trials counts the baselines: use at least {least}",
                {"least": len(self.space.baselines), "key": "num_trials"},
            )
        if self.metric != "validation_knn_accuracy" and self.early_stopping is not None:
            raise PydanticCustomError(
                "metric_at_the_end",
                "{metric} is measured in the last epoch only: use early_stopping none",
                {"metric": self.metric, "key": "early_stopping"},
            )
        return self

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not stopped early."""
        return int(self.space.fixed.get("epochs", TrialConfig.model_fields["epochs"].default))
