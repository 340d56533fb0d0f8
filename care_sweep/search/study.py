"""What should the next trial try? One Optuna study of one sweep, in memory, rebuilt by replay.

The store is the truth and this is its reader: a study restored from the stored trials answers `ask` as the
study that lived through them would have. Three things make it so:

- Each ask draws from a new sampler, seeded from (sweep seed, trial number): no state but the trials.
- Optuna holds the trials in the order of our numbers, for TPE weighs them by recency.
- TPE leaves drafts of parameters that turn out inactive on the trial it draws for, and reads them while that
  trial runs. So a scratch trial draws, which is then told FAIL (TPE never reads those), and the point enters
  the study by the same door as a restored one.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning

from care_sweep.search.sampler import EnteredTrial, TabledSampler, TabledTrials
from care_sweep.search.space import distributions, suggest, unconditional_distributions
from care_sweep.spec import Scalar, SearchSpace, TrialState

__all__ = ["VIOLATION", "Study", "quiet_study"]

VIOLATION = ("feasible", 1.0)
"""The constraint that an INFEASIBLE trial breaks, and by how much: above 0 is violated."""


@dataclass
class _OpenTrial:
    trial: optuna.Trial
    reported: dict[int, float] = field(default_factory=dict)


class Study:
    """The searched trials of one sweep; larger values are better. One owner, one thread: the sweep's driver.

    Baselines never enter. A trial is opened once, by `ask` or `restore`, in ascending order of its number
    (gaps are allowed), may `report`, and is ended once, by `complete`, `prune`, `fail` or `infeasible`. Every
    other order, and a value that is not finite, is a bug of the caller and raises AssertionError.
    """

    def __init__(self, space: SearchSpace, seed: int, *, num_startup_trials: int | None = None) -> None:
        """An empty study.

        Args:
            space: what is searched.
            seed: the sweep's seed.
            num_startup_trials: trials COMPLETE, PRUNED or INFEASIBLE before TPE begins; until then points are
                drawn at random. By default twice the number of parameters, at least 4 and at most 10
                (Optuna's default): a short sweep over few parameters is not spent on chance.
        """
        self._space = space
        self._seed = seed
        self._num_startup_trials = num_startup_trials or min(10, max(4, 2 * len(space.parameters)))
        self._trials = TabledTrials(space.parameters)
        self._study = quiet_study(self._trials)
        self._study_id = self._trials.get_study_id_from_name(self._study.study_name)
        self._always_drawn = unconditional_distributions(space)
        self._open: dict[int, _OpenTrial] = {}
        self._last_number = -1

    def ask(self, number: int) -> dict[str, Scalar]:
        """The point that trial `number` shall try; opens the trial.

        The same for the same space, seed, number and trials before it, whether lived through or restored.
        """
        self._assert_new(number)
        self._study.sampler = self._drawing_sampler(number)
        scratch = self._study.ask()
        values = suggest(self._space, scratch)
        self._study.tell(scratch, state=optuna.trial.TrialState.FAIL)
        self._enter(number, values)
        return values

    def restore(
        self,
        number: int,
        values: Mapping[str, Scalar],
        state: TrialState,
        intermediate: Mapping[int, float],
        value: float | None,
    ) -> None:
        """Enter a stored trial; one that is WAITING or RUNNING stays open and can be reported and ended.

        Args:
            number: our number of the trial.
            values: what `ask` answered for it, or what a user enqueued.
            state: as stored; CANCELLED counts as FAILED.
            intermediate: epoch -> value of its measurements.
            value: needed for COMPLETE; for INFEASIBLE the last finite value, if there was one.

        Raises:
            InvalidDocument: the values do not lie in this study's space; the study is as it was.
        """
        self._assert_new(number)
        assert state is not TrialState.COMPLETE or value is not None, (
            f"trial {number} is COMPLETE without value"
        )
        self._enter(number, values)
        for epoch, measured in intermediate.items():
            self.report(number, epoch, measured)
        if state.is_terminal:
            self.end(number, state, value)

    def end(self, number: int, state: TrialState, value: float | None) -> None:
        """End an open trial as it was stored; `state` and `value` are those of `restore`."""
        match state:
            case TrialState.COMPLETE:
                assert value is not None, f"trial {number} is COMPLETE without value"
                self.complete(number, value)
            case TrialState.PRUNED:
                self.prune(number)
            case TrialState.INFEASIBLE:
                self.infeasible(number, value)
            case _:
                assert state.is_terminal, f"trial {number} cannot end {state}"
                self.fail(number)

    def report(self, number: int, epoch: int, value: float) -> None:
        """What an open trial measured after `epoch`; of several reports of one epoch the first stands."""
        assert number in self._open, f"trial {number} is not open"
        assert math.isfinite(value), f"trial {number} reported {value} at epoch {epoch}"
        self._open[number].reported.setdefault(epoch, value)

    def complete(self, number: int, value: float) -> None:
        """The trial ran all its epochs; `value` is that of the last."""
        assert math.isfinite(value), f"trial {number} completed with {value}"
        self._close(number, optuna.trial.TrialState.COMPLETE, value)

    def prune(self, number: int) -> None:
        """The trial was stopped early: PRUNED with what it reported, never COMPLETE with its last value."""
        assert number in self._open, f"trial {number} is not open"
        for epoch, value in sorted(self._open[number].reported.items()):
            self._open[number].trial.report(value, epoch)
        self._close(number, optuna.trial.TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """The trial failed or was cancelled: nothing is learnt of its point."""
        self._close(number, optuna.trial.TrialState.FAIL)

    def infeasible(self, number: int, value: float | None) -> None:
        """The trial broke a constraint, such as collapse: TPE keeps away from its point whatever its value.

        It is told with a violated constraint: COMPLETE with its last finite `value`, or PRUNED where it ended
        before its metric was measured, which Optuna allows without a value.
        """
        assert number in self._open, f"trial {number} is not open"
        assert value is None or math.isfinite(value), f"trial {number} ended with {value}"
        self._open[number].trial.set_constraint(*VIOLATION)
        states = optuna.trial.TrialState
        self._close(number, states.PRUNED if value is None else states.COMPLETE, value)

    def _enter(self, number: int, values: Mapping[str, Scalar]) -> None:
        point = EnteredTrial(values, distributions(self._space, values))
        trial_id = self._trials.create_new_trial(self._study_id, point)
        self._open[number] = _OpenTrial(optuna.Trial(self._study, trial_id))
        self._last_number = number

    def _close(self, number: int, state: optuna.trial.TrialState, value: float | None = None) -> None:
        assert number in self._open, f"trial {number} is not open"
        self._study.tell(self._open.pop(number).trial, value, state)

    def _assert_new(self, number: int) -> None:
        assert number > self._last_number, f"trial {number} comes after {self._last_number}"

    def _drawing_sampler(self, number: int) -> TabledSampler:
        """Multivariate TPE with constant liar, as is Optuna's default; by groups in a conditional space."""
        seed = np.random.SeedSequence([self._seed, number]).generate_state(1).item()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Argument ``group``", ExperimentalWarning)
            return TabledSampler(
                self._trials,
                self._always_drawn,
                n_startup_trials=self._num_startup_trials,
                seed=seed,
                multivariate=True,
                group=self._always_drawn is None,
                constant_liar=True,
            )


def quiet_study(storage: optuna.storages.BaseStorage | None = None, name: str | None = None) -> optuna.Study:
    """An empty study that maximises, by default in memory; Optuna would log to stderr that it exists."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        storage = storage or optuna.storages.InMemoryStorage()
        return optuna.create_study(direction="maximize", storage=storage, study_name=name)
    finally:
        optuna.logging.set_verbosity(verbosity)
