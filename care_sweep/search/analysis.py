"""What was learnt: which configuration is best, by how much, how sure that is, and which parameters mattered.

Pure functions over plain records. Values are accuracies in [0, 1] on the validation images; larger is better.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from care_sweep.documents import Document
from care_sweep.search.space import distributions_of_each
from care_sweep.search.study import quiet_study
from care_sweep.spec import Scalar, SearchSpace, TrialState

__all__ = [
    "Comparison",
    "FinishedTrial",
    "Importance",
    "RankedTrial",
    "baselines",
    "best",
    "compare_with_baselines",
    "in_order",
    "parameter_importance",
    "shown",
    "standard_error",
]

_MIN_TRIALS_FOR_IMPORTANCE = 10


@dataclass(frozen=True)
class FinishedTrial:
    """A trial in a terminal state.

    `value` is needed of COMPLETE trials only, the others do not rank, and `num_validation_images` of those
    whose standard error is told.
    """

    number: int
    values: Mapping[str, Scalar]
    state: TrialState
    value: float | None
    is_baseline: bool
    num_validation_images: int | None = None


class RankedTrial(Document):
    """A COMPLETE trial, its place (1 is best) and the standard error of its value."""

    rank: int
    number: int
    values: dict[str, Scalar]
    is_baseline: bool
    value: float
    standard_error: float


class Comparison(Document):
    """The best searched trial beside one baseline: `difference` = best - baseline, and what to make of it."""

    baseline_number: int
    baseline_value: float
    best_number: int
    best_value: float
    difference: float
    standard_error: float
    note: str


class Importance(Document):
    """How much each parameter mattered, in shares of 1, the largest first; or the reason for silence."""

    method: str = "PED-ANOVA"
    num_trials: int
    importances: dict[str, float] | None
    reason: str | None = None


def standard_error(accuracy: float, num_images: int) -> float:
    """Of a share of right answers among `num_images`, binomial: sqrt(p (1 - p) / n).

    It is about the choice of images only: how far another pretraining seed would move the value is not in it.

    Raises:
        ValueError: the accuracy is no share, or there is no image.
    """
    if not 0 <= accuracy <= 1 or num_images < 1:
        raise ValueError(f"accuracy {accuracy} over {num_images} images: need a share in [0, 1] and an image")
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def in_order(trials: Iterable[FinishedTrial]) -> list[FinishedTrial]:
    """The COMPLETE trials, the best first; equal values in order of number."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    complete.sort(key=attrgetter("number"))
    complete.sort(key=_value, reverse=True)  # equal ones stay as they were
    return complete


def best(trials: Iterable[FinishedTrial], k: int | None = None) -> list[RankedTrial]:
    """The k best COMPLETE trials (default: all), baselines among them."""
    return [_ranked(rank, trial) for rank, trial in enumerate(in_order(trials)[:k], start=1)]


def baselines(trials: Iterable[FinishedTrial]) -> list[RankedTrial]:
    """The COMPLETE baselines by number, each with its place among all trials."""
    places = enumerate(in_order(trials), start=1)
    found = [_ranked(rank, trial) for rank, trial in places if trial.is_baseline]
    return sorted(found, key=lambda trial: trial.number)


def shown(trials: Sequence[FinishedTrial], k: int) -> set[int]:
    """The numbers of all of which `best` with this k, `baselines` and `compare_with_baselines` tell."""
    ranked = in_order(trials)
    searched = [trial for trial in ranked if not trial.is_baseline]
    return {t.number for t in [*ranked[:k], *searched[:1]]} | {t.number for t in ranked if t.is_baseline}


def compare_with_baselines(trials: Sequence[FinishedTrial]) -> list[Comparison]:
    """The best searched trial against each COMPLETE baseline, by number; empty when either side is missing.

    The standard error treats the two accuracies as independent. They are of the same images, on which two
    encoders mostly err alike, so it is conservative. But the best of n is chosen by the very value that is
    compared: with n > 1 the difference is optimistic, and each note says so.
    """
    searched = in_order(trial for trial in trials if not trial.is_baseline)
    if not searched:
        return []
    winner = _ranked(1, searched[0])
    return [_compare(winner, baseline, len(searched)) for baseline in baselines(trials)]


def parameter_importance(space: SearchSpace, trials: Iterable[FinishedTrial]) -> Importance:
    """Which parameters tell the top trials from the rest, by PED-ANOVA over the searched COMPLETE trials.

    Watanabe et al., "PED-ANOVA" (IJCAI 2023, arXiv 2304.10255), as Optuna has it. The top is the best tenth,
    but at least 5 trials, as Optuna's documentation advises. Other methods rank differently: name this one.

    Raises:
        InvalidDocument: the values of a searched trial do not lie in the space.
    """
    complete = [t for t in trials if t.state is TrialState.COMPLETE and not t.is_baseline]
    reason = _why_no_importance(complete)
    importances = None if reason else _ped_anova(space, complete)
    return Importance(num_trials=len(complete), importances=importances, reason=reason)


def _value(trial: FinishedTrial) -> float:
    assert trial.value is not None, f"trial {trial.number} is COMPLETE without value"
    return trial.value


def _ranked(rank: int, trial: FinishedTrial) -> RankedTrial:
    assert trial.num_validation_images is not None, f"trial {trial.number} has no number of images"
    return RankedTrial(
        rank=rank,
        number=trial.number,
        values=dict(trial.values),
        is_baseline=trial.is_baseline,
        value=_value(trial),
        standard_error=standard_error(_value(trial), trial.num_validation_images),
    )


def _why_no_importance(complete: Sequence[FinishedTrial]) -> str | None:
    if len(complete) < _MIN_TRIALS_FOR_IMPORTANCE:
        return (
            f"needs {_MIN_TRIALS_FOR_IMPORTANCE} COMPLETE trials besides baselines, there are {len(complete)}"
        )
    values = sorted((trial.value or 0.0 for trial in complete), reverse=True)
    if values[math.ceil(_top_share(len(complete)) * len(values)) - 1] == values[-1]:
        return "too many trials tie: there is no top to tell from the rest"
    return None


def _top_share(num_trials: int) -> float:
    return max(0.1, 5 / num_trials)


def _ped_anova(space: SearchSpace, complete: Sequence[FinishedTrial]) -> dict[str, float]:
    study = quiet_study(_GivenTrials(space, complete))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_top_share(len(complete)))
    with warnings.catch_warnings():  # a conditional parameter may have been active once only
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        found = get_param_importances(study, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class _GivenTrials(optuna.storages.InMemoryStorage):
    """COMPLETE trials as one study has them. To add them to a study one by one copies each, deeply."""

    def __init__(self, space: SearchSpace, complete: Sequence[FinishedTrial]) -> None:
        super().__init__()
        ordered = sorted(complete, key=lambda trial: trial.number)
        drawn_from = distributions_of_each(space, (trial.values for trial in ordered))
        self._given = [
            optuna.trial.FrozenTrial(
                number=number,
                trial_id=number,
                state=optuna.trial.TrialState.COMPLETE,
                value=trial.value,
                params=dict(trial.values),
                distributions=found,
                datetime_start=None,
                datetime_complete=None,
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
            for number, (trial, found) in enumerate(zip(ordered, drawn_from, strict=True))
        ]

    def get_all_trials(self, *_: object, **__: object) -> list[optuna.trial.FrozenTrial]:
        return self._given


def _compare(winner: RankedTrial, baseline: RankedTrial, num_searched: int) -> Comparison:
    note = "standard error of independent samples: conservative, for both saw the same validation images"
    if num_searched > 1:
        note += f"; optimistic, for the best of {num_searched} was chosen by this value"
    return Comparison(
        baseline_number=baseline.number,
        baseline_value=baseline.value,
        best_number=winner.number,
        best_value=winner.value,
        difference=winner.value - baseline.value,
        standard_error=math.hypot(winner.standard_error, baseline.standard_error),
        note=note,
    )
