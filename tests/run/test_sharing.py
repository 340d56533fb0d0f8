"""How many trials may each sweep run? Properties of every division, and what it comes to over time."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from demanding import demand
from hypothesis import given
from hypothesis import strategies as st

from care_sweep.run.placing import capacity_of
from care_sweep.run.sharing import TURN_SECONDS, Share, divide
from care_sweep.store import DemandRecord


def shares_of(nodes: Sequence[Mapping[str, float]], *demands: DemandRecord) -> Mapping[str, Share]:
    return divide({str(number): node for number, node in enumerate(nodes)}, demands)


def trials(nodes: Sequence[Mapping[str, float]], *demands: DemandRecord) -> list[int]:
    shares = shares_of(nodes, *demands)
    return [shares[one.id].num_trials for one in demands]


FOUR = [{"CPU": 1.0}] * 4


def test_priorities_divide_a_cluster() -> None:
    assert trials(FOUR, demand("a"), demand("b", priority=3)) == [1, 3]


def test_a_late_sweep_has_its_share_at_once_and_not_all_that_it_missed() -> None:
    early, late = demand("a", num_running=4, share_seconds=1e6), demand("b", priority=3)
    assert trials(FOUR, early, late) == [1, 3]
    assert shares_of(FOUR, early, late)["b"].least == pytest.approx(1e6, rel=1e-3)


def test_what_one_cannot_use_is_the_others() -> None:
    assert trials(FOUR, demand("a", priority=3, num_wanted=1), demand("b")) == [1, 3]


def test_one_alone_has_all_of_it() -> None:
    assert trials(FOUR, demand("a")) == [4]


def test_gpus_weigh_where_they_are_scarcer() -> None:
    """One's trials take a quarter of all GPUs each, the other's an eighth of the CPUs: equal shares."""
    node = {"CPU": 8.0, "GPU": 4.0}
    assert trials([node], demand("a", gpus_per_trial=1.0), demand("b")) == [3, 5]


def test_without_a_gpu_auto_asks_for_none_and_with_one_for_a_whole() -> None:
    asked = demand("a", gpus_per_trial=None)
    assert trials(FOUR, asked) == [4]
    assert trials([{"CPU": 8.0, "GPU": 2.0}], asked) == [2]


def test_what_no_node_has_room_for_gets_nothing_and_takes_nothing() -> None:
    assert trials(FOUR, demand("a", cpus_per_trial=2), demand("b")) == [0, 4]
    assert trials([], demand("a")) == [0]


def test_a_tokens_limit_is_of_all_its_sweeps_together() -> None:
    of_token = {"token_id": "t", "max_concurrent_trials": 2}
    assert trials(FOUR, demand("a", **of_token), demand("b", **of_token), demand("c")) == [1, 1, 2]


def test_who_runs_a_trial_keeps_it_for_a_turn() -> None:
    one = [{"CPU": 1.0}]
    for ahead, keeps in ((0.9, True), (1.1, False)):
        holder = demand("b", num_running=1, share_seconds=5000 + ahead * TURN_SECONDS)
        assert trials(one, demand("a", share_seconds=5000), holder) == ([0, 1] if keeps else [1, 0])


_nodes = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(1, 16).map(float), "GPU": st.integers(0, 4).map(float)}),
    max_size=6,
)
_demands = st.lists(
    st.fixed_dictionaries(
        {
            "priority": st.floats(0.01, 100),
            "cpus_per_trial": st.integers(1, 6),
            "gpus_per_trial": st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, None]),
            "num_wanted": st.integers(0, 50),
            "num_running": st.integers(0, 50),
            "share_seconds": st.floats(0, 1e6),
            "token_id": st.sampled_from([None, "t"]),
        }
    ),
    max_size=6,
)


@given(nodes=_nodes, asked=_demands, limit=st.integers(1, 10))
def test_every_division_fits_and_leaves_nothing_that_somebody_could_use(
    nodes: list[dict[str, float]], asked: list[dict[str, Any]], limit: int
) -> None:
    demands = [
        demand(str(i), **one, max_concurrent_trials=limit if one["token_id"] else None)
        for i, one in enumerate(asked)
    ]
    granted = trials(nodes, *demands)
    has_gpus = any(node["GPU"] for node in nodes)
    wanted = [
        {
            "CPU": one.cpus_per_trial,
            "GPU": float(has_gpus) if one.gpus_per_trial is None else one.gpus_per_trial,
        }
        for one in demands
    ]
    for name in ("CPU", "GPU"):
        used = math.fsum(number * want[name] for number, want in zip(granted, wanted, strict=True))
        assert used <= sum(node[name] for node in nodes) + 1e-6
    of_token = sum(n for n, one in zip(granted, demands, strict=True) if one.token_id)
    assert of_token <= limit
    for number, one, want in zip(granted, demands, wanted, strict=True):
        assert number <= min(one.num_wanted, capacity_of(nodes, want))
    if len(demands) == 1:
        most = limit if demands[0].token_id else 1000
        assert granted == [min(demands[0].num_wanted, capacity_of(nodes, wanted[0]), most)]
    elif all(want == wanted[0] for want in wanted) and of_token < limit:
        could = sum(one.num_wanted for one in demands)
        assert sum(granted) == min(could, capacity_of(nodes, wanted[0])) if demands else granted == []


def _over_time(
    num_cpus: int,
    priorities: Sequence[float],
    *,
    sizes: Sequence[int] = (1, 1, 1, 1),
    begins: Sequence[float] = (0, 0, 0, 0),
    epoch: float = 20,
    end: float = 7200,
) -> list[float]:
    """CPU seconds of each sweep, its trials of so many CPUs, where all follow the division; seeded."""
    chance = random.Random(0)  # noqa: S311
    sweeps = range(len(priorities))
    had, used = [0.0] * len(sweeps), [0.0] * len(sweeps)
    reports: list[list[float]] = [[] for _ in sweeps]
    for now in range(int(end)):
        there = [i for i in sweeps if begins[i] <= now]
        shares = shares_of(
            [{"CPU": float(num_cpus)}],
            *(
                demand(
                    str(i),
                    priority=priorities[i],
                    cpus_per_trial=sizes[i],
                    num_running=len(reports[i]),
                    share_seconds=had[i],
                )
                for i in there
            ),
        )
        for i in there:
            share = shares[str(i)]
            for _ in [report for report in reports[i] if report <= now]:
                reports[i].remove(min(reports[i]))
                used[i] += sizes[i] * epoch
                had[i] = max(had[i], share.least) + epoch * share.cost
                if len(reports[i]) < share.num_trials:
                    reports[i].append(now + epoch * chance.uniform(0.9, 1.1))
        for i in there:
            while len(reports[i]) < shares[str(i)].num_trials:
                taken = sum(size * len(running) for size, running in zip(sizes, reports, strict=False))
                if taken + sizes[i] > num_cpus:
                    break
                reports[i].append(now + epoch * chance.uniform(0.9, 1.1))
    return used


@pytest.mark.parametrize("num_cpus", [1, 2, 3, 4, 7])
def test_over_time_each_has_its_part_whatever_the_number_of_trials(num_cpus: int) -> None:
    used = _over_time(num_cpus, [1, 3])
    assert used[0] / sum(used) == pytest.approx(1 / 4, rel=0.1)


@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (1, 3), (3, 4)])
def test_over_time_a_trial_as_large_as_the_cluster_has_its_part_too(sizes: tuple[int, int]) -> None:
    used = _over_time(4, [1, 1], sizes=sizes, end=14400)
    assert min(used) / sum(used) > 0.4, "of what could be used"


def test_over_time_none_of_many_is_left_out_beside_a_large_one() -> None:
    used = _over_time(4, [1, 1, 1, 1], sizes=(1, 1, 1, 2), end=14400)
    assert min(used) / sum(used) > 0.2, used


def test_a_sweep_that_comes_late_has_half_of_one_trial_from_then_on() -> None:
    used = _over_time(1, [1, 1], begins=[0, 3600])
    assert used[1] / 3600 == pytest.approx(1 / 2, rel=0.1)


def test_a_debt_does_not_grow_old() -> None:
    """A sweep that could not run for hours does not have the cluster for hours then."""
    poor, rich = demand("a", share_seconds=5.0), demand("b", num_running=1, share_seconds=36_000.0)
    share = shares_of([{"CPU": 1.0}], poor, rich)["a"]
    assert share.num_trials == 1
    assert share.least == pytest.approx(36_000 - 10 * TURN_SECONDS)


def test_a_part_of_a_gpu_does_not_span_two() -> None:
    node = {"CPU": 16.0, "GPU": 4.0}
    assert trials([node], demand("a", gpus_per_trial=0.6)) == [4]
    assert trials([node], demand("a", gpus_per_trial=2.0)) == [2]
    halves, wholes = demand("a", gpus_per_trial=0.5), demand("b", gpus_per_trial=1.0)
    assert trials([node], halves, wholes) == [4, 2]
