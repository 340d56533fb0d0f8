"""Whose trials give way on which node? Pure cases, and what it comes to over hours on a simulated Ray."""

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
