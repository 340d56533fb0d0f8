"""Whose trials give way on which node? Pure cases, hours on a simulated Ray, and once a real one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from demanding import demand
from hypothesis import given
from hypothesis import strategies as st
from simulated_ray import SimulatedRay

from care_sweep.run.placing import Holding, most_in_places
from care_sweep.run.sharing import Share, divide
from care_sweep.spec import Spot

TWO = {"a": {"CPU": 8.0}, "b": {"CPU": 8.0}}


def here(**numbers: int) -> Mapping[Spot, int]:
    """So many trials on nodes, of which no GPU is known."""
    return {(node, ()): number for node, number in numbers.items()}


def holding(sweep_id: str, cpus: float, num_granted: int, **places: int) -> Holding:
    wanted = {"CPU": cpus, "GPU": 0.0}
    return Holding(sweep_id, wanted, cpus, num_granted, sum(places.values()), here(**places))


def test_small_trials_leave_one_node_for_a_trial_as_large_as_it() -> None:
    small, large = holding("small", 1, 8, a=8, b=8), holding("large", 8, 1)
    assert most_in_places(TWO, [small, large]) == {"small": here(a=0), "large": {}}


def test_they_leave_the_node_where_they_are_fewest() -> None:
    small, large = holding("small", 1, 7, a=4, b=3), holding("large", 8, 1)
    assert most_in_places(TWO, [small, large])["small"] == here(b=0)


def test_who_has_more_than_is_due_leaves_before_who_has_not() -> None:
    rich, poor, large = holding("rich", 1, 3, a=8), holding("poor", 1, 5, b=5), holding("large", 8, 1)
    found = most_in_places(TWO, [rich, poor, large])
    assert (found["rich"], found["poor"]) == (here(a=0), {})


def test_only_as_many_leave_as_must() -> None:
    small, large = holding("small", 1, 12, a=8, b=8), holding("large", 4, 1)
    assert most_in_places(TWO, [small, large])["small"] == here(a=4)


def test_nobody_leaves_for_what_runs_or_fits_or_is_no_larger() -> None:
    small = holding("small", 1, 8, b=8)
    runs, fits, equal = holding("l", 8, 1, a=1), holding("l", 8, 1), holding("l", 1, 8)
    for other in (runs, fits, equal):
        assert most_in_places(TWO, [small, other])["small"] == {}
    assert most_in_places(TWO, [holding("small", 1, 8, a=8, b=8), equal])["small"] == {}


def test_the_largest_choose_first_and_the_next_beside_them() -> None:
    three = {**TWO, "c": {"CPU": 8.0}}
    small, middle = holding("small", 1, 12, a=7, b=8, c=8), holding("middle", 4, 1)
    found = most_in_places(three, [small, middle, holding("large", 8, 1)])
    assert found == {"small": here(a=0, b=4), "middle": {}, "large": {}}


def test_a_larger_one_that_runs_beyond_its_share_is_not_waited_for() -> None:
    """Its node is taken to be free: it is, at its next report."""
    large, middle, small = holding("l", 8, 0, a=1), holding("m", 4, 2), holding("s", 1, 8, b=8)
    assert most_in_places(TWO, [large, middle, small])["s"] == {}


def test_places_on_nodes_that_are_gone_count_nowhere() -> None:
    assert most_in_places(TWO, [holding("s", 1, 8, x=8, b=8), holding("l", 8, 1)])["s"] == {}


def test_gpus_of_a_node_are_cleared_too() -> None:
    nodes = {"a": {"CPU": 16.0, "GPU": 2.0}, "b": {"CPU": 16.0, "GPU": 2.0}}
    half = Holding("half", {"CPU": 1.0, "GPU": 0.5}, 0.125, 5, 5, here(a=3, b=2))
    whole = Holding("two", {"CPU": 1.0, "GPU": 2.0}, 0.5, 1, 0, {})
    assert most_in_places(nodes, [half, whole])["half"] == here(b=0)


GPUS = {"a": {"CPU": 16.0, "GPU": 2.0}}


def on_gpus(*numbers: int, node: str = "a") -> Mapping[Spot, int]:
    """So many trials on the first GPU of a node, on the second, and so on."""
    return {(node, (str(index),)): number for index, number in enumerate(numbers) if number}


def of_gpus(sweep_id: str, gpus: float, num_granted: int, places: Mapping[Spot, int]) -> Holding:
    wanted = {"CPU": 1.0, "GPU": gpus}
    return Holding(sweep_id, wanted, gpus, num_granted, sum(places.values()), places)


@pytest.mark.parametrize(
    ("running", "larger", "expected"),
    [
        ((2, 2), 1, {0: 0}),
        ((2, 1), 1, {1: 0}),
        ((2, 0), 1, {}),
        ((1, 1), 0.6, {0: 0}),
        ((2, 1), 2, {0: 0, 1: 0}),
    ],
)
def test_halves_leave_a_gpu_and_only_that(
    running: Sequence[int], larger: float, expected: Mapping[int, int]
) -> None:
    half = of_gpus("half", 0.5, 2, on_gpus(*running))
    found = most_in_places(GPUS, [half, of_gpus("larger", larger, 1, {})])["half"]
    assert found == {("a", (str(index),)): number for index, number in expected.items()}


def test_on_a_gpu_stays_what_fits_beside() -> None:
    quarters = of_gpus("quarter", 0.25, 6, on_gpus(4, 4))
    assert most_in_places(GPUS, [quarters, of_gpus("half", 0.5, 1, {})])["quarter"] == on_gpus(2)


def test_the_gpu_is_left_whose_trials_give_way_in_any_case() -> None:
    rich, poor = of_gpus("rich", 0.25, 0, on_gpus(3, 0)), of_gpus("poor", 0.5, 1, on_gpus(0, 1))
    found = most_in_places(GPUS, [rich, poor, of_gpus("whole", 1, 1, {})])
    assert found == {"rich": {("a", ("0",)): 0}, "poor": {}, "whole": {}}


def test_a_whole_one_that_runs_keeps_its_gpu_and_the_next_has_the_other() -> None:
    half = of_gpus("half", 0.5, 0, on_gpus(1, 1))
    runs = of_gpus("whole", 1, 1, on_gpus(0, 1))
    assert most_in_places(GPUS, [half, runs])["half"] == {}, "it reports, or has just ended"
    both = of_gpus("whole", 1, 2, on_gpus(0, 1))
    assert most_in_places(GPUS, [half, both])["half"] == {("a", (name,)): 0 for name in "01"}


def test_a_gpu_that_has_no_known_trial_is_as_good_as_free() -> None:
    """Of trials that have not said on which GPUs they run it is taken that they share as few as they can."""
    for places in (on_gpus(0, 2), here(a=2)):
        assert most_in_places(GPUS, [of_gpus("h", 0.5, 2, places), of_gpus("w", 1, 1, {})])["h"] == {}
    unsaid = of_gpus("h", 0.5, 2, here(a=4))
    assert most_in_places(GPUS, [unsaid, of_gpus("w", 1, 1, {})])["h"] == here(a=2)


def test_nodes_whose_gpus_have_the_same_names_are_told_apart() -> None:
    two = {**GPUS, "b": GPUS["a"]}
    half = of_gpus("half", 0.5, 6, {**on_gpus(2, 2), **on_gpus(2, 1, node="b")})
    assert most_in_places(two, [half, of_gpus("whole", 1, 1, {})])["half"] == {("b", ("1",)): 0}


def test_a_gpu_is_cleared_for_a_timing() -> None:
    early = demand("early", gpus_per_trial=0.5, num_running=4, places=on_gpus(2, 2), share_seconds=900.0)
    late = demand("late", gpus_per_trial=None, num_wanted=1)
    shares = divide(GPUS, [early, late])
    assert {key: (share.num_trials, share.at_most) for key, share in shares.items()} == {
        "early": (2, {("a", ("0",)): 0}),
        "late": (1, {}),
    }


def test_a_trial_gives_way_where_it_is_misplaced_or_its_sweep_has_too_many_beside_those() -> None:
    share = Share(num_trials=2, at_most=here(a=1))
    assert share.num_misplaced(here(a=3, b=2)) == 2
    assert share.gives_way(("a", ()), 4, here(a=3, b=1))
    assert not share.gives_way(("b", ()), 4, here(a=3, b=1))
    assert share.gives_way(("b", ()), 5, here(a=3, b=2))
    assert not share.gives_way(("a", ()), 2, here(a=1, b=1))
    assert not share.gives_way(None, 2, here(a=1))


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    running=st.lists(st.integers(0, 8), min_size=4, max_size=4),
    large=st.integers(2, 8),
)
def test_what_is_left_makes_just_enough_room(sizes: list[int], running: list[int], large: int) -> None:
    nodes = {str(index): {"CPU": float(size)} for index, size in enumerate(sizes)}
    places = {name: min(number, sizes[int(name)]) for name, number in zip(nodes, running, strict=False)}
    found = most_in_places(nodes, [holding("small", 1, 0, **places), holding("large", large, 1)])["small"]
    fits = [size - places[name] >= large for name, size in zip(nodes, sizes, strict=True)]
    assert len(found) == (max(sizes) >= large and not any(fits))
    for (name, _), number in found.items():
        assert number + large == sizes[int(name)]


FOUR = {name: {"CPU": 4.0} for name in "abcd"}


def over_time(
    nodes: Mapping[str, Mapping[str, float]], wanted: Sequence[Mapping[str, float]], epochs: Sequence[float]
) -> Sequence[float]:
    """Trials of each sweep at once, on average over two hours less the first minutes, in which they come."""
    simulated = SimulatedRay(nodes, wanted, epochs)
    for number in range(1, len(wanted)):
        simulated.run(100 * number, range(number))
    before, begin, end = simulated.used.copy(), 100 * (len(wanted) - 1), 7200
    simulated.run(end, range(len(wanted)))
    return [(now - then) / (end - begin) for now, then in zip(simulated.used, before, strict=True)]


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
    used = over_time(nodes, [{"CPU": float(size), "GPU": 0.0} for size in sizes], epochs)
    used = [seconds * size for seconds, size in zip(used, sizes, strict=True)]
    assert min(used) / sum(used) > 0.8 / len(used), used
    assert sum(used) > 0.85 * sum(node["CPU"] for node in nodes.values()), used


@pytest.mark.parametrize(
    ("nodes", "gpus", "epochs"),
    [
        (GPUS, (0.5, 1.0), (20, 20)),
        (GPUS, (0.25, 1.0), (30, 20)),
        (GPUS, (0.5, 0.5, 1.0), (20, 25, 30)),
        ({**GPUS, "b": GPUS["a"]}, (0.5, 1.0, 2.0), (20, 30, 20)),
    ],
)
def test_over_time_trials_as_large_as_a_gpu_have_their_part(
    nodes: Mapping[str, Mapping[str, float]], gpus: Sequence[float], epochs: Sequence[float]
) -> None:
    used = over_time(nodes, [{"CPU": 1.0, "GPU": size} for size in gpus], epochs)
    used = [seconds * size for seconds, size in zip(used, gpus, strict=True)]
    assert min(used) / sum(used) > 0.8 / len(used), used
    assert sum(used) > 0.85 * sum(node["GPU"] for node in nodes.values()), used


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
