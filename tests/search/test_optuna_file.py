"""The file for Optuna holds what `add_trial` would have put there, and Optuna works with it."""

import errno
import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from care_sweep.errors import DatabaseFull
from care_sweep.search import optuna_file
from care_sweep.search.optuna_file import StoredTrial, write_study
from care_sweep.search.space import suggest
from care_sweep.search.study import Study
from care_sweep.spec import Scalar, SearchSpace, SweepSpec, TrialState

CURVE = {1: 0.25, 2: 1 / 3}
VALUES = {"equivariance_weight": 0.5, "temperature": 0.1, "augmentation_strength": 1.0}


def _spec(space: SearchSpace) -> SweepSpec:
    return SweepSpec(name="a sweep", space=space, num_trials=20, seed=3)


def _trial(number: int, values: Mapping[str, Scalar], state: TrialState, **changes: object) -> StoredTrial:
    trial: dict[str, object] = {
        "number": number,
        "values": values,
        "is_baseline": False,
        "state": state,
        "reason": None,
        "value": 0.3 + 0.01 * number if state is TrialState.COMPLETE else None,
        "curve": CURVE,
        "started_at": 1_800_000_000.25 + number,
        "finished_at": 1_800_000_100.5 + number if state.is_terminal else None,
    }
    return StoredTrial(**{**trial, **changes})  # type: ignore[arg-type] # of the types above


def _every_kind(space: SearchSpace) -> Sequence[StoredTrial]:
    """A trial in each state, with a curve and without, and complete ones that the search has suggested."""
    study = Study(space, seed=0)
    kinds = itertools.product(TrialState, (CURVE, {}))
    found = [
        _trial(number, study.ask(number), state, curve=curve, reason="of a kind" if number % 3 else None)
        for number, (state, curve) in enumerate(kinds)
    ]
    more = range(len(found), len(found) + 6)
    return [*found, *(_trial(number, study.ask(number), TrialState.COMPLETE) for number in more)]


def _loaded(path: Path, name: str = "0123") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def test_it_is_what_optuna_would_have_written(space: SearchSpace, tmp_path: Path) -> None:
    trials, spec = _every_kind(space), _spec(space)
    write_study(tmp_path / "ours.db", "0123", spec, trials)
    theirs = optuna.create_study(
        study_name="0123", direction="maximize", storage=f"sqlite:///{tmp_path / 'theirs.db'}"
    )
    theirs.set_user_attr("spec", spec.model_dump(mode="json"))
    for trial in trials:
        theirs.add_trial(optuna_file._frozen(trial, spec))
    ours = _loaded(tmp_path / "ours.db")
    assert ours.trials == theirs.trials
    assert ours.user_attrs == theirs.user_attrs
    assert ours.directions == theirs.directions
    assert ours.best_trial == theirs.best_trial


@pytest.mark.parametrize("curve", [CURVE, {}], ids=["measured", "unmeasured"])
def test_each_trial_ends_as_the_sweeps_own_study_was_told(
    plain_space: SearchSpace, tmp_path: Path, curve: dict[int, float]
) -> None:
    trials = [_trial(number, VALUES, state, curve=curve) for number, state in enumerate(TrialState)]
    study = Study(plain_space, seed=0)
    for trial in trials:
        last = trial.curve.get(2) if trial.state is TrialState.INFEASIBLE else trial.value
        study.restore(trial.number, trial.values, trial.state, trial.curve, last)
    write_study(tmp_path / "study.db", "0123", _spec(plain_space), trials)
    for ours, told in zip(_loaded(tmp_path / "study.db").trials, study._study.trials[:], strict=True):
        assert (ours.state, ours.values) == (told.state, told.values)
        assert (ours.params, ours.distributions) == (told.params, told.distributions)
        assert ours.constraints == told.constraints
        assert ours.intermediate_values == curve


def test_what_a_reader_finds(plain_space: SearchSpace, tmp_path: Path) -> None:
    spec = _spec(plain_space)
    trials = [
        _trial(0, VALUES | {"equivariance_weight": 0.0}, TrialState.COMPLETE, is_baseline=True, value=0.2),
        _trial(1, VALUES, TrialState.COMPLETE, value=0.4),
        _trial(2, VALUES, TrialState.INFEASIBLE, reason="collapsed", curve={1: 0.9}),
    ]
    write_study(tmp_path / "study.db", "0123", spec, trials)
    study = _loaded(tmp_path / "study.db")
    baseline, best, collapsed = study.trials
    assert baseline.params == {"temperature": 0.1, "augmentation_strength": 1.0}
    assert baseline.user_attrs == {
        "number": 0,
        "is_baseline": True,
        "seed": 3,
        "state": "COMPLETE",
        "outside_space": {"equivariance_weight": 0.0},
    }
    assert best.params == VALUES
    weight = optuna.distributions.FloatDistribution(0.01, 10, log=True)
    assert best.distributions["equivariance_weight"] == weight
    assert best.user_attrs == {"number": 1, "is_baseline": False, "seed": 3, "state": "COMPLETE"}
    assert best.duration is not None and best.duration.total_seconds() == 100.25
    assert best.datetime_start is not None and best.datetime_start.timestamp() == trials[1].started_at
    assert collapsed.constraints == {"feasible": 1.0}
    assert collapsed.user_attrs["reason"] == "collapsed"
    assert study.best_trial.number == 1, "not the one that breaks a constraint"
    assert SweepSpec.model_validate(study.user_attrs["spec"]) == spec


def test_optuna_goes_on_from_it(space: SearchSpace, tmp_path: Path) -> None:
    """Baselines outside the space do not keep it from suggesting, nor from telling what mattered."""
    outside = {name: value for name, value in _every_kind(space)[-1].values.items() if name != "temperature"}
    baseline = _trial(0, {**outside, "temperature": 50.0}, TrialState.COMPLETE, is_baseline=True)
    study = Study(space, seed=1)
    searched = [_trial(n, study.ask(n), TrialState.COMPLETE, value=0.05 * n) for n in range(1, 16)]
    write_study(tmp_path / "study.db", "0123", _spec(space), [baseline, *searched])
    loaded = _loaded(tmp_path / "study.db")
    loaded.sampler = optuna.samplers.TPESampler(n_startup_trials=2, seed=0)
    loaded.optimize(lambda trial: float(len(suggest(space, trial))), n_trials=2)
    assert [trial.number for trial in loaded.trials] == list(range(18))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.4)
    with pytest.warns(UserWarning, match="Some regimes"):
        found = optuna.importance.get_param_importances(loaded, evaluator=evaluator)
    assert "temperature" in found


@pytest.mark.parametrize("whose", ["sqlite3.connect", "sqlite3.dbapi2.connect"], ids=["ours", "Optuna's"])
def test_a_full_disk_is_told(
    plain_space: SearchSpace, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def without_room(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count=10")
        return connection

    monkeypatch.setattr(whose, without_room)
    trials = [_trial(0, VALUES, TrialState.FAILED, curve=dict.fromkeys(range(1, 10_001), 0.5))]
    with pytest.raises(OSError, match="No space left on device") as full:
        write_study(tmp_path / "study.db", "0123", _spec(plain_space), trials)
    assert full.value.errno == errno.ENOSPC


def test_what_the_giver_of_trials_raises_passes(plain_space: SearchSpace, tmp_path: Path) -> None:
    """The sweep's own database may be a full SQLite too."""
    cause = sqlite3.OperationalError()
    cause.sqlite_errorcode = sqlite3.SQLITE_FULL

    def trials() -> Iterator[StoredTrial]:
        yield _trial(0, VALUES, TrialState.FAILED)
        raise DatabaseFull("full") from cause

    with pytest.raises(DatabaseFull):
        write_study(tmp_path / "study.db", "0123", _spec(plain_space), trials())
