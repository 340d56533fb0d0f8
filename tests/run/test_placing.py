"""Whose trials give way on which node? Pure cases, hours on a simulated Ray, and once a real one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_ray import SimulatedRay

from care_sweep.run.placing import Holding, most_on_nodes
from care_sweep.run.sharing import Share

TWO = {"a": {"CPU": 8.0}, "b": {"CPU": 8.0}}


def holding(sweep_id: str, cpus: float, num_granted: int, **places: int) -> Holding:
    wanted = {"CPU": cpus, "GPU": 0.0}
    return Holding(sweep_id, wanted, cpus, num_granted, sum(places.values()), places)


def test_small_trials_leave_one_node_for_a_trial_as_large_as_it() -> None:
    small, large = holding("small", 1, 8, a=8, b=8), holding("large", 8, 1)
    assert most_on_nodes(TWO, [small, large]) == {"small": {"a": 0}, "large": {}}


def test_they_leave_the_node_where_they_are_fewest() -> None:
    small, large = holding("small", 1, 7, a=4, b=3), holding("large", 8, 1)
    assert most_on_nodes(TWO, [small, large])["small"] == {"b": 0}


def test_who_has_more_than_is_due_leaves_before_who_has_not() -> None:
    rich, poor, large = holding("rich", 1, 3, a=8), holding("poor", 1, 5, b=5), holding("large", 8, 1)
    found = most_on_nodes(TWO, [rich, poor, large])
    assert (found["rich"], found["poor"]) == ({"a": 0}, {})


def test_only_as_many_leave_as_must() -> None:
    small, large = holding("small", 1, 12, a=8, b=8), holding("large", 4, 1)
    assert most_on_nodes(TWO, [small, large])["small"] == {"a": 4}


def test_nobody_leaves_for_what_runs_or_fits_or_is_no_larger() -> None:
    small = holding("small", 1, 8, b=8)
    runs, fits, equal = holding("l", 8, 1, a=1), holding("l", 8, 1), holding("l", 1, 8)
    for other in (runs, fits, equal):
        assert most_on_nodes(TWO, [small, other])["small"] == {}
    assert most_on_nodes(TWO, [holding("small", 1, 8, a=8, b=8), equal])["small"] == {}


def test_the_largest_choose_first_and_the_next_beside_them() -> None:
    three = {**TWO, "c": {"CPU": 8.0}}
    small, middle = holding("small", 1, 12, a=7, b=8, c=8), holding("middle", 4, 1)
    found = most_on_nodes(three, [small, middle, holding("large", 8, 1)])
    assert found == {"small": {"a": 0, "b": 4}, "middle": {}, "large": {}}


def test_a_larger_one_that_runs_beyond_its_share_is_not_waited_for() -> None:
    """Its node is taken to be free: it is, at its next report."""
    large, middle, small = holding("l", 8, 0, a=1), holding("m", 4, 2), holding("s", 1, 8, b=8)
    assert most_on_nodes(TWO, [large, middle, small])["s"] == {}


def test_places_on_nodes_that_are_gone_count_nowhere() -> None:
    assert most_on_nodes(TWO, [holding("s", 1, 8, x=8, b=8), holding("l", 8, 1)])["s"] == {}


def test_gpus_of_a_node_are_cleared_too() -> None:
    nodes = {"a": {"CPU": 16.0, "GPU": 2.0}, "b": {"CPU": 16.0, "GPU": 2.0}}
    half = Holding("half", {"CPU": 1.0, "GPU": 0.5}, 0.125, 5, 5, {"a": 3, "b": 2})
    whole = Holding("two", {"CPU": 1.0, "GPU": 2.0}, 0.5, 1, 0, {})
    assert most_on_nodes(nodes, [half, whole])["half"] == {"b": 0}


def test_a_trial_gives_way_where_it_is_misplaced_or_its_sweep_has_too_many_beside_those() -> None:
    share = Share(num_trials=2, at_most={"a": 1})
    assert share.num_misplaced({"a": 3, "b": 2}) == 2
    assert share.gives_way("a", 4, {"a": 3, "b": 1})
    assert not share.gives_way("b", 4, {"a": 3, "b": 1})
    assert share.gives_way("b", 5, {"a": 3, "b": 2})
    assert not share.gives_way("a", 2, {"a": 1, "b": 1})
    assert not share.gives_way(None, 2, {"a": 1})


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    running=st.lists(st.integers(0, 8), min_size=4, max_size=4),
    large=st.integers(2, 8),
)
def test_what_is_left_makes_just_enough_room(sizes: list[int], running: list[int], large: int) -> None:
    nodes = {str(index): {"CPU": float(size)} for index, size in enumerate(sizes)}
    places = {name: min(number, sizes[int(name)]) for name, number in zip(nodes, running, strict=False)}
    found = most_on_nodes(nodes, [holding("small", 1, 0, **places), holding("large", large, 1)])["small"]
    fits = [size - places[name] >= large for name, size in zip(nodes, sizes, strict=True)]
    assert len(found) == (max(sizes) >= large and not any(fits))
    for name, number in found.items():
        assert number + large == sizes[int(name)]


FOUR = {name: {"CPU": 4.0} for name in "abcd"}


@pytest.mark.parametrize(
    ("nodes", "sizes", "epochs"),
    [
        (TWO, (1, 8), (20, 20)),
        (TWO, (1, 1, 8), (20, 20, 20)),
        (TWO, (1, 2, 8), (5, 120, 60)),
        (FOUR, (1, 1, 2, 4), (20, 30, 40, 50)),
    ],
)
def test_over_time_trials_as_large_as_a_node_have_their_part(
    nodes: Mapping[str, Mapping[str, float]], sizes: Sequence[int], epochs: Sequence[float]
) -> None:
    """The sweeps come one after another, the one with the largest trials last."""
    simulated = SimulatedRay(nodes, sizes, epochs)
    for number in range(1, len(sizes)):
        simulated.run(100 * number, range(number))
    before, begin, end = simulated.used.copy(), 100 * (len(sizes) - 1), 7200
    simulated.run(end, range(len(sizes)))
    used = [now - then for now, then in zip(simulated.used, before, strict=True)]
    assert min(used) / sum(used) > 0.8 / len(used), used
    assert sum(used) > 0.85 * (end - begin) * sum(node["CPU"] for node in nodes.values()), used


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_small_trials_on_two_real_nodes_leave_one_to_a_large_one(tmp_path: Path) -> None:
    """One on each reports first: were they only counted both would leave, and the large one wait for ever."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'benchmarks'}"}
    command = [sys.executable, Path(__file__).with_name("making_room.py"), tmp_path]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert found["large"] is not None, "it waits"
    assert {reason for reason, node in found["small"] if node == found["large"]} == {"preempted"}
    assert {reason for reason, node in found["small"] if node != found["large"]} == {None}
