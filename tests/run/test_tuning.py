"""When does the searcher propose? As far as the share goes, and once Tune is done with what has ended."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conducting import EPOCHS, Sweep, measure
from ray.tune.search import Searcher

from care_sweep.run.sharing import UNSHARED, Share
from care_sweep.run.tuning import _ConductedSearcher
from care_sweep.settings import Settings


@pytest.fixture
def searcher(make_sweep: Callable[..., Sweep], settings: Settings) -> _ConductedSearcher:
    conductor = make_sweep(max_concurrent_trials=1, early_stopping="none").conduct()
    return _ConductedSearcher(conductor, SimpleNamespace(look=lambda: None), settings)


def test_none_is_proposed_before_tune_is_done_with_the_one_before_it(searcher: _ConductedSearcher) -> None:
    conductor = searcher._conductor
    assert searcher.suggest("a")["number"] == 0
    assert searcher.suggest("b") is None
    trial = searcher._assignments["a"]
    for epoch in range(1, EPOCHS + 1):
        measure(conductor, trial, epoch, 0.5)
    assert conductor.has_room, "it has ended"
    assert searcher.suggest("c") is None, "but not in Tune"
    searcher.on_trial_complete("a")
    assert searcher.suggest("d")["number"] == 1


def test_a_sweep_without_a_share_lets_go_of_tune_once_nothing_runs(searcher: _ConductedSearcher) -> None:
    conductor = searcher._conductor
    searcher.suggest("a")
    conductor.room.share = Share(num_trials=0)
    assert searcher.suggest("b") is None
    assert measure(conductor, searcher._assignments["a"], 1, 0.5), "it gives its place back"
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a")
    assert searcher.suggest("d") == Searcher.FINISHED
    conductor.room.share = UNSHARED
    again = searcher.suggest("e")
    assert (again["number"], again["attempt"], again["last_epoch"]) == (0, 2, 1)
