"""A study answers the same whether it lived through its trials or was restored, and tells every end truly."""

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler
from optuna.search_space import IntersectionSearchSpace
from spaces import MIXED

from care_sweep.documents import parse
from care_sweep.errors import InvalidDocument
from care_sweep.search.sampler import EnteredTrial, TabledSampler
from care_sweep.search.study import Study
from care_sweep.spec import Scalar, SearchSpace, TrialState

ENDS = (
    TrialState.COMPLETE,
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAILED,
    TrialState.INFEASIBLE,
)


@dataclass
class StoredTrial:
    """What the store keeps of a searched trial."""

    values: dict[str, Scalar]
    state: TrialState = TrialState.RUNNING
    intermediate: dict[int, float] = field(default_factory=dict)
    value: float | None = None


@dataclass
class Sweep:
    """A live study beside the store that its driver would have written; numbers below 2 are baselines."""

    space: SearchSpace
    seed: int = 0
    stored: dict[int, StoredTrial] = field(default_factory=dict)
    next_number: int = 2

    def __post_init__(self) -> None:
        self.study = Study(self.space, self.seed)

    @property
    def open_numbers(self) -> list[int]:
        return [number for number, trial in self.stored.items() if not trial.state.is_terminal]

    def ask(self) -> None:
        self.stored[self.next_number] = StoredTrial(self.study.ask(self.next_number))
        self.next_number += 1

    def report(self, number: int, value: float) -> None:
        epoch = len(self.stored[number].intermediate) + 1
        self.stored[number].intermediate[epoch] = value
        self.study.report(number, epoch, value)

    def end(self, number: int, state: TrialState, value: float) -> None:
        trial = self.stored[number]
        trial.state = state
        match state:
            case TrialState.COMPLETE:
                trial.value = value
                self.study.complete(number, value)
            case TrialState.PRUNED:
                self.study.prune(number)
            case TrialState.INFEASIBLE:
                trial.value = value if trial.intermediate else None
                self.study.infeasible(number, trial.value)
            case _:
                self.study.fail(number)

    def restored(self) -> Study:
        """The study that a new driver builds from the store, where values have been through JSON."""
        study = Study(self.space, self.seed)
        for number, trial in self.stored.items():
            values = json.loads(json.dumps(trial.values))
            study.restore(number, values, trial.state, trial.intermediate, trial.value)
        return study


def live_through(space: SearchSpace, seed: int, num_steps: int) -> Sweep:
    """A sweep after random asks, reports and ends, in random order, with some trials still open."""
    rng = random.Random(seed)  # noqa: S311  (dice, not secrets)
    sweep = Sweep(space, seed)
    for _ in range(num_steps):
        number = rng.choice(sweep.open_numbers) if sweep.open_numbers else None
        action = rng.random()
        if number is None or (action < 0.4 and len(sweep.open_numbers) < 5):
            sweep.ask()
        elif action < 0.7:
            sweep.report(number, rng.random())
        else:
            sweep.end(number, rng.choice(ENDS), rng.random())
    return sweep


@pytest.mark.parametrize("seed", range(15))
def test_a_restored_study_asks_as_the_live_one(space: SearchSpace, seed: int) -> None:
    sweep = live_through(space, seed, num_steps=20 * seed)
    restored = sweep.restored()
    for number in range(sweep.next_number, sweep.next_number + 4):  # with more and more trials open
        assert restored.ask(number) == sweep.study.ask(number)


def test_a_restored_study_goes_on_as_the_live_one(space: SearchSpace) -> None:
    sweep = live_through(space, 3, num_steps=150)
    restored = sweep.restored()
    for number in sweep.open_numbers:
        for study in (sweep.study, restored):
            study.report(number, 50, number / 100)
            if number % 2:
                study.complete(number, number / 100)
            else:
                study.prune(number)
    for number in range(sweep.next_number, sweep.next_number + 10):
        point = sweep.study.ask(number)
        assert restored.ask(number) == point
        for study in (sweep.study, restored):
            study.complete(number, number / 100)


@pytest.mark.parametrize("seed", range(5))
def test_what_the_sampler_is_told_is_what_it_would_find(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters that all trials have: without them it compares all trials at each ask."""
    space = parse(SearchSpace, {"parameters": MIXED})

    def asked() -> list[dict[str, Scalar]]:
        return [trial.values for trial in live_through(space, seed, num_steps=150).stored.values()]

    with monkeypatch.context() as patch:
        patch.setattr(IntersectionSearchSpace, "calculate", None)
        told_so = asked()
    monkeypatch.setattr(TabledSampler, "infer_relative_search_space", TPESampler.infer_relative_search_space)
    assert told_so == asked()


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_replays(conditional_space: SearchSpace, data: st.DataObject) -> None:
    sweep = Sweep(conditional_space, data.draw(st.integers(0, 2**31 - 1), label="seed"))
    values = st.floats(0, 1)
    for _ in range(data.draw(st.integers(0, 40), label="steps")):
        if not sweep.open_numbers or data.draw(st.booleans(), label="ask"):
            sweep.ask()
            continue
        number = data.draw(st.sampled_from(sweep.open_numbers), label="number")
        if data.draw(st.booleans(), label="report"):
            sweep.report(number, data.draw(values, label="value"))
        else:
            sweep.end(number, data.draw(st.sampled_from(ENDS)), data.draw(values, label="value"))
    assert sweep.restored().ask(sweep.next_number) == sweep.study.ask(sweep.next_number)


def test_another_process_asks_the_same(conditional_space: SearchSpace) -> None:
    """Nothing hangs on the hash of a string, which differs from process to process."""
    program = (
        "import json, sys\n"
        "from care_sweep.documents import parse\n"
        "from care_sweep.search.study import Study\n"
        "from care_sweep.spec import SearchSpace\n"
        "study = Study(parse(SearchSpace, json.loads(sys.argv[1])), 7)\n"
        "for number in range(40):\n"
        "    point = study.ask(number)\n"
        "    if number % 3: study.complete(number, len(point) / (1 + number))\n"
        "print(json.dumps(point))"
    )
    document = json.dumps(conditional_space.model_dump(mode="json"))
    points = {
        subprocess.run(
            [sys.executable, "-c", program, document],
            env={"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(points) == 1


def test_points_differ_by_number_and_by_seed(plain_space: SearchSpace) -> None:
    study, other = Study(plain_space, 0), Study(plain_space, 1)
    points = [tuple(s.ask(number).values()) for s in (study, other) for number in range(20)]
    assert len(set(points)) == 40


def test_an_early_answer_depends_on_the_number_alone(plain_space: SearchSpace) -> None:
    full, gap = Study(plain_space, 0), Study(plain_space, 0)
    points = [full.ask(number) for number in range(5)]
    assert gap.ask(4) == points[4]


@pytest.mark.parametrize("name", ["plain_space", "conditional_space"])
def test_points_make_configurations(name: str, request: pytest.FixtureRequest) -> None:
    space: SearchSpace = request.getfixturevalue(name)
    sweep = live_through(space, 1, num_steps=120)
    for trial in sweep.stored.values():
        space.trial_config(trial.values)
        assert all(type(value) in (bool, int, float, str) for value in trial.values.values())


def told(study: Study) -> list[optuna.trial.FrozenTrial]:
    """Optuna's trials without the scratch ones."""
    return [trial for trial in study._study.trials if isinstance(trial, EnteredTrial)]


def test_every_end_is_told_as_what_it_is(plain_space: SearchSpace) -> None:
    study = Study(plain_space, 0)
    for number in range(5):
        study.ask(number)
        study.report(number, 1, 0.1)
        study.report(number, 2, number / 4)
    study.complete(0, 0.9)
    study.prune(1)
    study.fail(2)
    study.infeasible(3, 0.8)
    study.ask(6)
    study.infeasible(6, None)
    states = optuna.trial.TrialState
    complete, pruned, failed, infeasible, still_open, unmeasured = told(study)
    assert (complete.state, complete.value, complete.constraints) == (states.COMPLETE, 0.9, {})
    assert (pruned.state, pruned.intermediate_values) == (states.PRUNED, {1: 0.1, 2: 0.25})
    assert failed.state == states.FAIL
    assert (infeasible.state, infeasible.value) == (states.COMPLETE, 0.8)
    assert (unmeasured.state, unmeasured.value) == (states.PRUNED, None)
    for trial in (infeasible, unmeasured):
        assert all(violation > 0 for violation in trial.constraints.values())
        assert len(trial.constraints) == 1
    assert still_open.state == states.RUNNING


@pytest.mark.parametrize("value", [None, 0.1])
def test_the_search_keeps_away_from_where_trials_collapse(
    plain_space: SearchSpace, value: float | None
) -> None:
    """Three quarters of the space; where a trial collapses is learnt also of one that measured nothing."""
    study = Study(plain_space, 0)
    has_collapsed = []
    for number in range(40):
        temperature = float(study.ask(number)["temperature"])
        has_collapsed.append(temperature > 0.1)
        if has_collapsed[-1]:
            study.infeasible(number, value)
        else:
            study.complete(number, 1 - temperature)
    assert sum(has_collapsed[-20:]) < 10, "by chance 15"


def test_optuna_never_takes_an_infeasible_trial_for_the_best(plain_space: SearchSpace) -> None:
    study = Study(plain_space, 0)
    for number, value in enumerate((0.2, 0.9, None)):
        study.ask(number)
        study.infeasible(number, value) if number else study.complete(number, value)
    assert study._study.best_value == 0.2


def test_restored_ends_equal_lived_ones(space: SearchSpace) -> None:
    sweep = live_through(space, 5, num_steps=100)

    def essence(study: Study) -> list[object]:
        return [
            (t.state, t.values, t.params, t.distributions, t.intermediate_values, t.constraints)
            for t in told(study)
        ]

    assert essence(sweep.restored()) == essence(sweep.study)


@pytest.mark.parametrize("state", [TrialState.WAITING, TrialState.RUNNING])
def test_an_open_stored_trial_can_go_on(plain_space: SearchSpace, state: TrialState) -> None:
    values = Study(plain_space, 0).ask(4)
    study = Study(plain_space, 0)
    study.restore(4, values, state, {1: 0.3}, None)
    study.report(4, 1, 0.7)  # the epoch was redone after a crash: the first stands
    study.report(4, 2, 0.4)
    study.prune(4)
    (trial,) = told(study)
    assert trial.intermediate_values == {1: 0.3, 2: 0.4}


def test_a_cancelled_trial_teaches_nothing(plain_space: SearchSpace) -> None:
    study = Study(plain_space, 0)
    study.restore(0, Study(plain_space, 0).ask(0), TrialState.CANCELLED, {1: 0.3}, None)
    assert told(study)[0].state == optuna.trial.TrialState.FAIL


@pytest.mark.parametrize("again", ["complete", "prune", "fail", "infeasible", "report"])
@pytest.mark.parametrize("end", ["complete", "prune", "fail", "infeasible"])
def test_terminal_is_terminal(plain_space: SearchSpace, end: str, again: str) -> None:
    arguments = {"complete": (0.5,), "infeasible": (0.5,), "report": (1, 0.5)}
    study = Study(plain_space, 0)
    study.ask(0)
    getattr(study, end)(0, *arguments.get(end, ()))
    with pytest.raises(AssertionError, match="trial 0 is not open"):
        getattr(study, again)(0, *arguments.get(again, ()))


def test_a_number_is_opened_once_and_in_order(plain_space: SearchSpace) -> None:
    study = Study(plain_space, 0)
    values = study.ask(3)
    for number in (3, 2):
        with pytest.raises(AssertionError, match=f"trial {number} comes after 3"):
            study.ask(number)
        with pytest.raises(AssertionError, match=f"trial {number} comes after 3"):
            study.restore(number, values, TrialState.RUNNING, {}, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_bug_of_the_caller(plain_space: SearchSpace, value: float) -> None:
    study = Study(plain_space, 0)
    study.ask(0)
    for call in (lambda: study.report(0, 1, value), lambda: study.complete(0, value)):
        with pytest.raises(AssertionError, match=str(value)):
            call()
    study.complete(0, 0.5)  # and the trial is still open


def test_complete_without_a_value_is_not_restored(plain_space: SearchSpace) -> None:
    study = Study(plain_space, 0)
    with pytest.raises(AssertionError, match="COMPLETE without value"):
        study.restore(0, Study(plain_space, 0).ask(0), TrialState.COMPLETE, {}, None)


def test_values_of_another_space_are_refused_and_leave_no_trace(plain_space: SearchSpace) -> None:
    study = Study(plain_space, 0)
    baseline = plain_space.baseline_values(plain_space.baselines[0])
    with pytest.raises(InvalidDocument, match="/equivariance_weight: must be a float in"):
        study.restore(0, baseline, TrialState.COMPLETE, {}, 0.5)
    assert study.ask(0) == Study(plain_space, 0).ask(0)


def test_the_search_finds_more_than_chance(plain_space: SearchSpace) -> None:
    """A smooth bump: of 60 trials the last 20 come nearer to its top than the first 6, drawn at random."""

    def value(point: dict[str, Scalar]) -> float:
        return -abs(float(point["temperature"]) - 0.2) - abs(float(point["augmentation_strength"]) - 0.7)

    study = Study(plain_space, 0)
    values = []
    for number in range(60):
        values.append(value(study.ask(number)))
        study.complete(number, values[-1])
    assert sum(values[-20:]) / 20 > sum(values[:6]) / 6 + 0.2


def test_startup_follows_the_number_of_parameters() -> None:
    def startup(num_parameters: int) -> int:
        names = [
            "temperature",
            "learning_rate",
            "weight_decay",
            "equivariance_weight",
            "augmentation_strength",
        ]
        parameters = {name: {"type": "float", "low": 0.01, "high": 1} for name in names[:num_parameters]}
        return Study(parse(SearchSpace, {"parameters": parameters}), 0)._num_startup_trials

    assert [startup(num) for num in (1, 2, 3, 4, 5)] == [4, 4, 6, 8, 10]


def test_an_ask_after_a_thousand_trials(space: SearchSpace) -> None:
    """Prints what it costs (seen: 10-25 ms); a driver asks between two epochs of a trial."""
    study, points = Study(space, 0), Study(space, 0, num_startup_trials=10_000)
    for number in range(1000):
        study.restore(number, points.ask(number), TrialState.COMPLETE, {}, number / 1000)
    begin = time.perf_counter()
    for number in range(1000, 1010):
        study.ask(number)
    print(f"{(time.perf_counter() - begin) * 100:.0f} ms an ask, {len(space.parameters)} parameters")


def test_nothing_is_logged_and_the_verbosity_is_left_alone(
    plain_space: SearchSpace, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    study = Study(plain_space, 0)
    study.ask(0)
    study.infeasible(0, 0.5)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
