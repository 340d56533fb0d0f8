"""A driver waits for a node before it says what a trial holds there."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from conducting import Sweep
from demanding import demand
from ray.exceptions import RaySystemError

from care_sweep.run import allotment, tuning
from care_sweep.run.allotment import Allotment
from care_sweep.settings import Settings

_HEAD = {"memory": 1e9}
_WORKER = {"CPU": 8.0, "GPU": 1.0}


class _Growing:
    """A cluster of a head that has a worker from the third look on."""

    def __init__(self) -> None:
        self.num_looks = 0

    def usable(self) -> Mapping[str, Mapping[str, float]]:
        self.num_looks += 1
        return {"head": _HEAD, "worker": _WORKER} if self.num_looks > 2 else {"head": _HEAD}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allotment, "_LOOK_SECONDS", 0.0)


def test_a_sweep_asks_for_a_node_and_says_so_until_one_has_come(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(resources={"cpus_per_trial": 4})
    said, wanted = [], []

    class _Watched(_Growing):
        def usable(self) -> Mapping[str, Mapping[str, float]]:
            said.append(sweep.store.sweep(sweep.id).message)
            wanted.append([one.num_wanted for one in sweep.store.demands()])
            return super().usable()

    nodes: Any = _Watched()
    assert Allotment(sweep.conduct(), nodes).await_node() == [_HEAD, _WORKER]
    assert said[1:] == ["waiting: no node of the cluster has the 4 CPU that a trial needs"] * 2
    assert wanted == [[0], [1], [1]], "of a sweep whose GPUs are not chosen yet"


def test_the_clusters_head_may_be_away_while_a_node_is_waited_for(make_sweep: Callable[..., Sweep]) -> None:
    class _Away(_Growing):
        def usable(self) -> Mapping[str, Mapping[str, float]]:
            found = super().usable()
            if self.num_looks == 2:
                raise RaySystemError("the GCS does not answer")
            return found

    nodes: Any = _Away()
    assert Allotment(make_sweep().conduct(), nodes).await_node() == [_HEAD, _WORKER]


def test_a_spent_quota_is_heard_while_a_node_is_waited_for(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor = make_sweep().conduct()
    demands = [demand(conductor.sweep_id, is_quota_spent=True)]
    monkeypatch.setattr(conductor._store, "demands", lambda: demands)
    nodes: Any = SimpleNamespace(usable=lambda: {"head": _HEAD})
    assert Allotment(conductor, nodes).await_node() == []


def test_gpus_are_chosen_once_there_is_a_node_that_may_have_some(
    make_sweep: Callable[..., Sweep], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor = make_sweep(num_trials=1).conduct()
    monkeypatch.setattr(tuning, "Nodes", _Growing)
    monkeypatch.setattr(tuning, "await_same_version", lambda *_: None)
    monkeypatch.setattr(tuning, "_run", lambda conductor, *_: conductor.hand_over())
    tuning.run_trials(conductor, settings)
    assert conductor.gpus_per_trial == conductor.gpus_noted == 1.0


def test_a_sweep_that_is_paused_before_a_node_comes_keeps_what_was_chosen(
    make_sweep: Callable[..., Sweep], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep()
    sweep.conduct().note_gpus(0.25, "4 at once on a GPU")
    conductor = sweep.conduct()
    sweep.store.control.pause(sweep.id)
    sweep.clock.now += 1
    monkeypatch.setattr(tuning, "Nodes", lambda: SimpleNamespace(usable=lambda: {"head": _HEAD}))
    monkeypatch.setattr(tuning, "await_same_version", lambda *_: None)
    tuning.run_trials(conductor, settings)
    assert sweep.store.sweep(sweep.id).gpus_per_trial == 0.25
