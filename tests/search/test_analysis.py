"""What was learnt is ranked, compared and explained as it is, and not said where it cannot be known."""

import json
import math
import warnings
from typing import Any

import optuna
import pytest
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from care_sweep.errors import InvalidDocument
from care_sweep.search.analysis import (
    FinishedTrial,
    baselines,
    best,
    compare_with_baselines,
    parameter_importance,
    standard_error,
)
from care_sweep.search.space import distributions
from care_sweep.search.study import Study
from care_sweep.spec import SearchSpace, TrialState


def trial(number: int, value: float | None, **changes: Any) -> FinishedTrial:
    fields: dict[str, Any] = {
        "number": number,
        "values": {"temperature": 0.5},
        "state": TrialState.COMPLETE,
        "value": value,
        "is_baseline": False,
        "num_validation_images": 400,
    }
    return FinishedTrial(**{**fields, **changes})


def test_standard_error_is_binomial() -> None:
    assert standard_error(0.5, 400) == 0.025
    assert standard_error(0.9, 100) == pytest.approx(0.03)
    assert standard_error(1.0, 400) == 0.0


@pytest.mark.parametrize(("accuracy", "num_images"), [(1.1, 10), (-0.1, 10), (math.nan, 10), (0.5, 0)])
def test_what_is_no_share_has_no_standard_error(accuracy: float, num_images: int) -> None:
    with pytest.raises(ValueError, match=r"need a share in \[0, 1\]"):
        standard_error(accuracy, num_images)


def test_only_complete_trials_rank_and_ties_go_by_number() -> None:
    trials = [
        trial(5, 0.6),
        trial(1, 0.6),
        trial(2, 0.9, state=TrialState.PRUNED),
        trial(3, 0.9, state=TrialState.INFEASIBLE),
        trial(4, None, state=TrialState.FAILED),
        trial(0, 0.7, is_baseline=True),
        trial(6, None, state=TrialState.CANCELLED),
    ]
    ranked = best(trials)
    assert [(entry.rank, entry.number) for entry in ranked] == [(1, 0), (2, 1), (3, 5)]
    assert [entry.is_baseline for entry in ranked] == [True, False, False]
    assert best(trials, k=2) == ranked[:2]
    assert best([]) == []
    assert baselines(trials) == ranked[:1]
    assert json.loads(ranked[1].model_dump_json()) == {
        "rank": 2,
        "number": 1,
        "values": {"temperature": 0.5},
        "is_baseline": False,
        "value": 0.6,
        "standard_error": pytest.approx(math.sqrt(0.24 / 400)),
    }


def test_baselines_stand_by_number_with_their_place_among_all() -> None:
    trials = [
        trial(0, 0.6, is_baseline=True),
        trial(1, 0.8, is_baseline=True),
        trial(2, None, is_baseline=True, state=TrialState.FAILED),
        trial(3, 0.7),
    ]
    assert [(entry.number, entry.rank) for entry in baselines(trials)] == [(0, 3), (1, 1)]


def test_a_complete_trial_without_a_value_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        best([trial(0, None)])


def test_the_best_searched_trial_is_compared_with_each_baseline() -> None:
    trials = [
        trial(0, 0.6, is_baseline=True),
        trial(1, 0.8, is_baseline=True),
        trial(2, 0.7),
        trial(3, 0.5),
    ]
    won, lost = compare_with_baselines(trials)
    assert (won.baseline_number, won.best_number) == (0, 2)
    assert won.difference == pytest.approx(0.1)
    assert won.standard_error == pytest.approx(math.sqrt(0.24 / 400 + 0.21 / 400))
    assert (lost.baseline_number, lost.best_number) == (1, 2)
    assert lost.difference == pytest.approx(-0.1)
    assert "conservative" in won.note
    assert "optimistic, for the best of 2 was chosen" in won.note


def test_one_searched_trial_was_not_chosen() -> None:
    (comparison,) = compare_with_baselines([trial(0, 0.6, is_baseline=True), trial(1, 0.7)])
    assert "optimistic" not in comparison.note


@pytest.mark.parametrize(
    "trials",
    [[], [trial(0, 0.6)], [trial(0, 0.6, is_baseline=True)], [trial(0, None, state=TrialState.FAILED)]],
)
def test_without_two_sides_nothing_is_compared(trials: list[FinishedTrial]) -> None:
    assert compare_with_baselines(trials) == []


def searched(space: SearchSpace, num_trials: int) -> list[FinishedTrial]:
    """Random points whose accuracy hangs on the temperature alone."""
    study = Study(space, 0, num_startup_trials=10_000)
    points = [study.ask(number) for number in range(num_trials)]
    return [
        trial(number, 1 - abs(float(point["temperature"]) - 0.3), values=point)
        for number, point in enumerate(points)
    ]


@pytest.mark.parametrize("num_trials", [30, 200])
def test_the_parameter_that_matters_comes_first(plain_space: SearchSpace, num_trials: int) -> None:
    importance = parameter_importance(plain_space, searched(plain_space, num_trials))
    assert (importance.method, importance.num_trials, importance.reason) == ("PED-ANOVA", num_trials, None)
    assert importance.importances is not None
    assert next(iter(importance.importances)) == "temperature"
    assert sum(importance.importances.values()) == pytest.approx(1)
    assert set(importance.importances) == set(plain_space.parameters)


@pytest.mark.parametrize("num_trials", [10, 11, 12, 40])
def test_conditional_parameters_have_an_importance(conditional_space: SearchSpace, num_trials: int) -> None:
    trials = searched(conditional_space, num_trials)
    importance = parameter_importance(conditional_space, trials)
    assert importance.importances is not None
    assert importance == parameter_importance(conditional_space, trials[::-1])


def test_importance_is_that_of_a_study_with_these_trials(space: SearchSpace) -> None:
    trials = searched(space, 40)
    study = optuna.create_study(direction="maximize")
    for one in trials:
        given = distributions(space, one.values)
        study.add_trial(
            optuna.trial.create_trial(value=one.value, params=dict(one.values), distributions=given)
        )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=5 / 40)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        expected = get_param_importances(study, evaluator=evaluator)
    assert parameter_importance(space, trials[::-1]).importances == expected


def test_too_few_trials_tell_nothing(plain_space: SearchSpace) -> None:
    trials = [
        *searched(plain_space, 9),
        trial(9, 0.9, is_baseline=True),
        trial(10, 0.9, state=TrialState.PRUNED),
    ]
    importance = parameter_importance(plain_space, trials)
    assert importance.importances is None
    assert importance.reason == "needs 10 COMPLETE trials besides baselines, there are 9"


def test_ties_tell_nothing(plain_space: SearchSpace) -> None:
    trials = [trial(t.number, 0.5, values=t.values) for t in searched(plain_space, 12)]
    assert parameter_importance(plain_space, trials).reason is not None


def test_trials_of_another_space_are_refused(plain_space: SearchSpace) -> None:
    with pytest.raises(InvalidDocument, match="/equivariance_weight: is missing"):
        parameter_importance(plain_space, [trial(number, number / 20) for number in range(12)])
