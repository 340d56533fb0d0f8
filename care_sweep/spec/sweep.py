"""What does a person ask for, who asks for a sweep?"""

from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from care_sweep.documents import Document, pointer
from care_sweep.errors import Problem
from care_sweep.spec.config import FIELDS_OF_DEVICES, TrialConfig, misfit_of_devices
from care_sweep.spec.space import SearchSpace

__all__ = ["Budget", "EarlyStopping", "Resources", "SweepSpec"]

_Metric = Literal["validation_knn_accuracy", "validation_probe_accuracy"]
"""What a sweep may maximise. Training losses are refused: their scale moves with temperature and weight."""


class EarlyStopping(Document):
    """Asynchronous successive halving: at epochs grace * factor^k the best 1/factor go on."""

    grace_epochs: int = Field(5, ge=1, le=10_000)
    reduction_factor: int = Field(4, ge=2, le=100)


class Resources(Document):
    """What one trial holds while it runs.

    A part of a GPU is a share of its memory too: a trial that wants more is out of memory, its neighbours are
    not. Several GPUs, all of one node, train a trial together, each with a part of every batch. `auto` is
    none where the cluster has no GPU. Where it has, the sweep's heaviest trial is timed on one first, for a
    minute or a few, and 1, 2, 4 or 8 share a GPU, whichever is best and fits; a trial that runs out of memory
    then gets a whole one.
    """

    cpus_per_trial: int = Field(1, ge=1, le=1024)
    gpus_per_trial: float | Literal["auto"] = "auto"

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_part_or_whole(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not (0 <= value <= 1 or (value.is_integer() and 1 < value <= 1024)):
            detail = "must be auto, from 0 to 1, or a whole number of GPUs, at most 1024"
            raise PydanticCustomError("gpus", detail)
        return value


class Budget(Document):
    """What a sweep may spend, looked at after each epoch; once spent, trials are cancelled and it succeeds.

    Seconds are those in which a driver ran it: neither waiting nor pauses count. GPU hours are those of
    stored epochs times the GPUs of a trial: what was lost and trained again counts once.
    """

    max_seconds: float | None = Field(None, gt=0)
    max_gpu_hours: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.max_seconds is None and self.max_gpu_hours is None:
            raise PydanticCustomError("no_limit", "limits nothing; give max_seconds or max_gpu_hours")
        return self


class SweepSpec(Document):
    """One sweep; `num_trials` counts the baselines, without `max_concurrent_trials` the cluster is filled.

    Sweeps that run at once divide the cluster by their `priority`: 3 has three times as much as 1.
    """

    name: str = Field(min_length=1, max_length=100)
    space: SearchSpace = Field(description="or, in a submission, the name of one")
    metric: _Metric = Field(
        "validation_knn_accuracy",
        description="what is maximised; the probe's accuracy, measured in the last epoch only, needs "
        "early_stopping none",
    )
    num_trials: int = Field(ge=1, le=100_000)
    max_concurrent_trials: int | None = Field(None, ge=1, le=10_000)
    seed: int = Field(0, ge=0, lt=2**31, description="all trials share it, and the search draws from it")
    early_stopping: EarlyStopping | None = Field(
        default_factory=EarlyStopping, description="with none, or null, every trial runs to its last epoch"
    )
    resources: Resources = Field(default_factory=Resources)
    priority: float = Field(1.0, ge=0.01, le=100)
    budget: Budget | None = None

    @field_validator("name")
    @classmethod
    def _name_can_be_read(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise PydanticCustomError("name", "use printable characters, at least one of them not a space")
        return value

    @field_validator(
        "early_stopping", mode="before", json_schema_input_type=EarlyStopping | Literal["none"] | None
    )
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("metric", mode="before")
    @classmethod
    def _metric_can_rank(cls, value: Any) -> Any:
        metrics = get_args(_Metric)
        if value not in metrics:
            is_a_loss = isinstance(value, str) and "loss" in value
            why = "training losses move with temperature and weight; " if is_a_loss else ""
            raise PydanticCustomError("metric", why + "use one of {metrics}", {"metrics": ", ".join(metrics)})
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
        self._refuse_misfits_of_devices()
        return self

    def _refuse_misfits_of_devices(self) -> None:
        wanted = self.resources.gpus_per_trial
        if wanted == "auto" or wanted <= 1:
            return
        for name in FIELDS_OF_DEVICES:
            for value in self.space.values_of(name):
                detail = misfit_of_devices(name, value, int(wanted))
                if detail is not None:
                    problem = Problem(pointer("resources", "gpus_per_trial"), detail, f"{wanted:g}")
                    raise PydanticCustomError("problems", "the parts do not fit", {"problems": [problem]})

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not stopped early."""
        return int(self.space.fixed.get("epochs", TrialConfig.model_fields["epochs"].default))
