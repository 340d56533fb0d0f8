"""The points of a long search are those of Optuna's own TPE, which reads every trial."""

import random
import warnings

import numpy as np
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler, TPESampler
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace, _SearchSpaceGroup
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial
from spaces import MIXED

from care_sweep.documents import parse
from care_sweep.search import sampler
from care_sweep.search.space import distributions, suggest
from care_sweep.search.study import VIOLATION, Study, quiet_study
from care_sweep.spec import Scalar, SearchSpace, TrialState

SEED = 5
ENDS = [*TrialState, *[TrialState.COMPLETE] * 8]


class PlainOptuna:
    """What `Study` promises, asked of Optuna as it comes."""

    def __init__(self, space: SearchSpace, num_startup_trials: int) -> None:
        self._space, self._num_startup_trials = space, num_startup_trials
        self._is_conditional = any(parameter.when for parameter in space.parameters.values())
        self._study = quiet_study()

    def add(
        self,
        values: dict[str, Scalar],
        state: OptunaState,
        value: float | None = None,
        intermediate: dict[int, float] | None = None,
        constraints: dict[str, float] | None = None,
    ) -> None:
        trial = create_trial(
            state=state,
            value=value,
            params=values,
            distributions=distributions(self._space, values),
            intermediate_values=intermediate,
            constraints=constraints,
        )
        self._study.add_trial(trial)

    def ask(self, number: int) -> dict[str, Scalar]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = TPESampler(
                n_startup_trials=self._num_startup_trials,
                seed=np.random.SeedSequence([SEED, number]).generate_state(1).item(),
                multivariate=True,
                group=self._is_conditional,
            )
        scratch = self._study.ask()
        values = suggest(self._space, scratch)
        self._study.tell(scratch, state=OptunaState.FAIL)
        self.add(values, OptunaState.RUNNING)
        return values


def long_lived(space: SearchSpace, num_trials: int) -> tuple[Study, PlainOptuna]:
    """The same trials in both, of every end there is, drawn at random and some of them still open."""
    rng = random.Random(0)  # noqa: S311  (dice, not secrets)
    ours = Study(space, SEED)
    plain = PlainOptuna(space, ours._num_startup_trials)
    points = quiet_study()
    points.sampler = RandomSampler(seed=0)
    for number in range(num_trials):
        values, end, value = suggest(space, points.ask()), rng.choice(ENDS), rng.random()
        curve = {1: rng.random(), 2: rng.random()} if end is TrialState.PRUNED else {}
        ours.restore(number, values, end, curve, value)
        match end:
            case TrialState.COMPLETE:
                plain.add(values, OptunaState.COMPLETE, value)
            case TrialState.PRUNED:
                plain.add(values, OptunaState.PRUNED, curve[2], curve)
            case TrialState.INFEASIBLE:
                plain.add(values, OptunaState.COMPLETE, value, constraints=dict([VIOLATION]))
            case TrialState.FAILED | TrialState.CANCELLED:
                plain.add(values, OptunaState.FAIL)
            case TrialState.WAITING | TrialState.RUNNING:
                plain.add(values, OptunaState.RUNNING)
    return ours, plain


@pytest.fixture
def mixed_space() -> SearchSpace:
    return parse(SearchSpace, {"parameters": MIXED})


@pytest.mark.parametrize("name", ["plain_space", "mixed_space", "conditional_space"])
def test_a_long_search_goes_on_as_plain_optuna(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the rows that the table begins with, and with what was asked still open."""
    monkeypatch.setattr(sampler, "_FIRST_ROWS", 64)
    ours, plain = long_lived(request.getfixturevalue(name), 400)
    for number in range(400, 406):
        assert ours.ask(number) == plain.ask(number)


def test_the_table_is_what_is_asked(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Optuna that reads the trials in some other way would draw the same points, slowly."""
    ours, _ = long_lived(space, 60)
    monkeypatch.setattr(TPESampler, "_get_internal_repr", None)
    ours.ask(60)


def test_groups_are_those_of_every_trial(conditional_space: SearchSpace) -> None:
    """In their order too, in which values are drawn."""
    for num_trials in (1, 2, 5, 60):
        ours, plain = long_lived(conditional_space, num_trials)
        found = sampler._GroupsOfKinds(include_pruned=True).calculate(ours._study)
        every = _GroupDecomposedSearchSpace(include_pruned=True).calculate(plain._study)
        assert [set(one) for one in found.search_spaces] == [set(one) for one in every.search_spaces]


def test_groups_are_found_from_a_trial_of_each_kind(
    conditional_space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = long_lived(conditional_space, 60)
    read = []
    add = _SearchSpaceGroup.add_distributions
    monkeypatch.setattr(
        _SearchSpaceGroup, "add_distributions", lambda self, one: (read.append(set(one)), add(self, one))
    )
    ours.ask(60)
    assert len(read) == len({frozenset(one) for one in read}) == 3
