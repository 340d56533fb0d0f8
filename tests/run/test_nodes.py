"""Nodes that go on purpose are told from those that die, and a sweep outlives both."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conducting import Sweep, next_of

from care_sweep.run import nodes
from care_sweep.run.tuning import _ConductedScheduler

EXPECTED, UNEXPECTED, PREEMPTED = 1, 2, 3


class _Cluster:
    """What Ray would tell: nodes a and b, an actor on each, named after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draining: dict[str, int] = {}
        self.nodes: dict[str, dict[str, Any]] = {
            name: {"NodeID": name, "Alive": True, "DeathReason": 0, "Resources": {"CPU": number}}
            for number, name in enumerate("ab", 1)
        }
        told = SimpleNamespace(nodes=lambda: list(self.nodes.values()))
        monkeypatch.setattr(nodes, "ray", told)
        monkeypatch.setattr(nodes, "actors", lambda actor: {"Address": {"NodeID": actor}})
        monkeypatch.setattr(nodes, "state", SimpleNamespace(get_draining_nodes=lambda: dict(self.draining)))

    def end(self, name: str, reason: int) -> None:
        self.nodes[name] |= {"Alive": False, "DeathReason": reason}
        self.draining.pop(name, None)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> _Cluster:
    return _Cluster(monkeypatch)


def test_a_node_that_drains_gets_nothing_new_and_was_meant_to_go_however_it_ends(cluster: _Cluster) -> None:
    seen = nodes.Nodes()
    assert seen.usable() == {"a": {"CPU": 1}, "b": {"CPU": 2}}
    cluster.draining["a"] = 0
    assert list(seen.usable()) == ["b"]
    assert seen.was_meant_to_go("a"), "its worker may go before it does"
    cluster.end("a", UNEXPECTED)  # as Ray says of it once it is gone
    assert list(seen.usable()) == ["b"]
    assert seen.was_meant_to_go("a")
    assert not seen.was_meant_to_go("b"), "a worker of a node that lives"


@pytest.mark.parametrize(("reason", "meant"), [(EXPECTED, True), (UNEXPECTED, False), (PREEMPTED, True)])
def test_rays_own_word_counts_where_it_has_one(cluster: _Cluster, reason: int, *, meant: bool) -> None:
    cluster.end("a", reason)
    assert nodes.Nodes().was_meant_to_go("a") is meant


@pytest.mark.parametrize(("draining", "reason"), [({"a": 0}, "node drained"), ({}, "worker lost")])
def test_an_attempt_is_told_by_how_its_node_went(
    cluster: _Cluster,
    make_sweep: Callable[..., Sweep],
    tmp_path: Path,
    draining: dict[str, int],
    reason: str,
) -> None:
    sweep = make_sweep()
    conductor, seen = sweep.conduct(), nodes.Nodes()
    order = next_of(conductor)
    cluster.draining |= draining
    seen.usable()
    cluster.end("a", UNEXPECTED)
    error = tmp_path / "error.txt"
    error.write_text("The actor died unexpectedly.\n\tclass_name: \n\tactor_id: a\n")
    config = {"number": order.number, "attempt": order.attempt}
    trial: Any = SimpleNamespace(config=config, error_file=str(error))
    _ConductedScheduler(conductor, seen).on_trial_error(None, trial)
    conductor.lost(order.number, order.attempt, "its process died")  # as the searcher does next
    (attempt,) = sweep.store.attempts(sweep.id, order.number)
    assert attempt.reason == reason


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_trial_is_accounted_for_where_nodes_and_the_head_die(tmp_path: Path, bucket: str) -> None:
    """The real driver, store and Tune on three nodes and a head, trials that sleep, an S3 bucket."""
    script = Path(__file__).parents[2] / "benchmarks" / "nodes.py"
    answer = tmp_path / "answer.json"
    told = ["--nodes", "3", "--deaths", "6", "--head-deaths", "1", "--trials", "40"]
    told += ["--storage-uri", f"{bucket}/nodes", "--json", str(answer)]
    subprocess.run([sys.executable, str(script), *told], check=True)
    found = json.loads(answer.read_text())
    assert (found["state"], found["trials"]) == ("SUCCEEDED", {"COMPLETE": 40})
    assert (found["missing"], found["doubled"], found["num_deaths"]) == (0, 0, 6)
    assert found["num_head_deaths"] == 1
