"""What does TPE draw, without reading every parameter of every trial anew at each ask?

Its points are those of Optuna's own. Of ten thousand trials Optuna compares the distributions and looks up
each parameter; here it is told which parameters all trials have, or reads one trial of each kind, and finds
the rest in a table.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace, _SearchSpaceGroup
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from care_sweep.spec import Scalar

__all__ = ["EnteredTrial", "TabledSampler", "TabledTrials"]

_FIRST_ROWS = 1024


class EnteredTrial(FrozenTrial):
    """An open trial at a given point."""

    def __init__(self, values: Mapping[str, Scalar], distributions: Mapping[str, BaseDistribution]) -> None:
        super().__init__(
            number=-1,  # the storage gives it one
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=dict(values),
            distributions=dict(distributions),
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    @property
    def constraints(self) -> dict[str, float]:
        """As Optuna has them, which looks for them among the system attributes: a trial has no others."""
        return super().constraints if self.system_attrs else {}


class TabledTrials(InMemoryStorage):
    """The trials of one study, and a table of their parameters as Optuna reckons with them."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are those of all parameters that a trial may have."""
        super().__init__()
        self._columns = {name: column for column, name in enumerate(names)}
        self._table = np.empty((_FIRST_ROWS, len(self._columns)))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        number = self.get_trial_number_from_id(trial_id)
        if number == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[number] = np.nan
        if template_trial is not None:
            for name, value in template_trial.params.items():
                internal = template_trial.distributions[name].to_internal_repr(value)
                self._table[number, self._columns[name]] = internal
        return trial_id

    def columns(self, names: Sequence[str], numbers: Sequence[int]) -> Mapping[str, NDArray[np.float64]]:
        """Of those trials among `numbers` that have all of these parameters, each parameter by itself."""
        found = self._table[np.ix_(numbers, [self._columns[name] for name in names])]
        found = found[~np.isnan(found).any(1)]
        return dict(zip(names, found.T, strict=True))


class _GroupsOfKinds(_GroupDecomposedSearchSpace):
    """The groups of parameters that go together, found from the first trial of each kind.

    Another trial with the same parameters parts no group further, nor does it change their order.
    """

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> _SearchSpaceGroup:
        kinds: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        for trial in study._get_trials(deepcopy=False, states=ended, use_cache=use_cache):
            kinds.setdefault(tuple(trial.distributions), trial.distributions)
        for distributions in kinds.values():
            self._search_space.add_distributions(distributions)
        return self._search_space


class TabledSampler(TPESampler):
    """Optuna's TPE over the trials of a table."""

    def __init__(
        self, trials: TabledTrials, always_drawn: Mapping[str, BaseDistribution] | None, **options: Any
    ) -> None:
        """
        Args:
            trials: of the study that it draws for.
            always_drawn: what every trial draws several values from; None where some draw less than others.
            options: Optuna's.
        """
        super().__init__(**options)
        self._group_decomposed_search_space = _GroupsOfKinds(include_pruned=True)
        self._trials = trials
        self._always_drawn = always_drawn

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self._always_drawn is None:
            return super().infer_relative_search_space(study, trial)
        return dict(self._always_drawn)

    def _get_internal_repr(
        self, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution], *_: object
    ) -> dict[str, NDArray[np.float64]]:
        """The one method of Optuna's that reads parameters: where it has none of that name, it reads them."""
        numbers = [trial.number for trial in trials]
        return dict(self._trials.columns(list(search_space), numbers))
