"""Does `benchmarks/fidelity.py` spend virtual time as a sweep would, and may a recording be interrupted?"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from curves import Curve, Recording, point, read, values_at, write
from fidelity import _outcome, _rank_correlation
from virtual_sweep import METRIC, Ended, Pool, Search, best_within, seconds_until, simulate

from care_sweep.search.study import Study
from care_sweep.spec import EarlyStopping, Scalar, SearchSpace, TrialState

_ROOT = Path(__file__).parents[1]
_SCRIPT = _ROOT / "benchmarks" / "fidelity.py"
_SPACE = SearchSpace.model_validate(
    {
        "parameters": {
            "temperature": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
            "augmentation_strength": {"type": "float", "low": 0.0, "high": 2.0},
        },
        "fixed": {"epochs": 3},
    }
)


def _curve(
    number: int,
    values: Sequence[float],
    strength: float = 1.0,
    state: TrialState = TrialState.COMPLETE,
    temperature: float = 0.1,
    seconds: float = 1.0,
) -> Curve:
    """A trial of three epochs, or less where it ends otherwise; an epoch takes `seconds`."""
    num_epochs = len(values) + (state is TrialState.FAILED)
    parameters: dict[str, Scalar] = {"temperature": temperature, "augmentation_strength": strength}
    return Curve(number, parameters, state, {METRIC: list(values)}, [seconds] * num_epochs)


class _Scripted:
    """Proposes strengths in the order given, stops trials at the epochs given, and notes what it hears."""

    def __init__(self, strengths: Sequence[float], stops: Mapping[int, int]) -> None:
        self._strengths, self._stops = strengths, stops
        self.heard: list[tuple[Any, ...]] = []

    def propose(self, number: int) -> Mapping[str, Scalar]:
        return {"temperature": 0.1, "augmentation_strength": self._strengths[number]}

    def begin(self, number: int, parameters: Mapping[str, Scalar]) -> None:
        self.heard.append(("begin", number, parameters["augmentation_strength"]))

    def measured(self, number: int, epoch: int, value: float) -> bool:
        self.heard.append(("measured", number, epoch, value))
        return self._stops.get(number) == epoch

    def end(self, number: int, state: TrialState, last_epoch: int, value: float | None) -> None:
        self.heard.append(("end", number, str(state), last_epoch, value))


# --- points -------------------------------------------------------------------------------------------------


def test_a_point_has_logarithmic_parameters_by_their_logarithm() -> None:
    assert point(_SPACE, {"temperature": 0.1, "augmentation_strength": 0.5}) == pytest.approx((0.5, 0.25))
    assert values_at(_SPACE, (0.5, 0.25)) == pytest.approx({"temperature": 0.1, "augmentation_strength": 0.5})
    assert values_at(_SPACE, (0.0, 1.0)) == pytest.approx({"temperature": 0.01, "augmentation_strength": 2.0})


def test_a_space_without_distances_is_refused() -> None:
    space = SearchSpace.model_validate(
        {"parameters": {"encoder": {"type": "categorical", "choices": ["resnet18", "resnet50"]}}}
    )
    with pytest.raises(ValueError, match="other than float"):
        point(space, {"encoder": "resnet18"})


def test_a_proposal_is_answered_by_the_nearest_run_not_yet_taken() -> None:
    far, near, nearest = (_curve(n, [0.1] * 3, temperature=t) for n, t in enumerate((0.4, 0.02, 0.03)))
    pool = Pool(_SPACE, [far, near, nearest])  # from 0.1: 0.301, 0.349 and 0.261 of the range
    wanted: dict[str, Scalar] = {"temperature": 0.1, "augmentation_strength": 1.0}
    assert [pool.take(wanted).number for _ in range(3)] == [2, 0, 1]
    assert len(pool) == 0


# --- virtual time -------------------------------------------------------------------------------------------


def test_two_workers_spend_what_their_trials_took() -> None:
    curves = [
        _curve(10, [0.1, 0.2, 0.3], strength=0.0),
        _curve(11, [0.1, 0.1, 0.1], strength=0.5, seconds=2.0),
        _curve(12, [0.2, 0.4, 0.5], strength=1.0),
        _curve(13, [0.1], strength=2.0, state=TrialState.FAILED),
    ]
    search = _Scripted([0.1, 0.4, 2.0, 1.1], stops={1: 2})
    ended = simulate(Pool(_SPACE, curves), search, num_workers=2)
    # worker A: 10 until 3 s, 13 until 5 s; worker B: 11 stopped at 4 s, 12 until 7 s
    assert ended == [
        Ended(10, TrialState.COMPLETE, 6.0, 0.3),
        Ended(11, TrialState.PRUNED, 8.0, None),
        Ended(13, TrialState.FAILED, 10.0, None),
        Ended(12, TrialState.COMPLETE, 12.0, 0.5),
    ]
    assert search.heard == [
        ("begin", 0, 0.0),
        ("begin", 1, 0.5),
        ("measured", 0, 1, 0.1),
        ("measured", 0, 2, 0.2),
        ("measured", 1, 1, 0.1),
        ("end", 0, "COMPLETE", 3, 0.3),
        ("begin", 2, 2.0),
        ("measured", 1, 2, 0.1),
        ("end", 1, "PRUNED", 2, 0.1),
        ("begin", 3, 1.0),
        ("measured", 2, 1, 0.1),
        ("end", 2, "FAILED", 2, None),
        ("measured", 3, 1, 0.2),
        ("measured", 3, 2, 0.4),
        ("end", 3, "COMPLETE", 3, 0.5),
    ]


def test_only_a_trial_at_full_length_gets_there() -> None:
    ended = [
        Ended(0, TrialState.COMPLETE, 3.0, 0.30),
        Ended(1, TrialState.PRUNED, 4.0, None),
        Ended(2, TrialState.COMPLETE, 9.0, 0.50),
        Ended(3, TrialState.COMPLETE, 12.0, 0.40),
    ]
    assert seconds_until(ended, 0.50) == 9.0
    assert seconds_until(ended, 0.25) == 3.0
    assert seconds_until(ended, 0.51) is None
    assert [best_within(ended, seconds) for seconds in (2.0, 3.0, 8.9, 9.0, 99.0)] == [
        None,
        0.30,
        0.30,
        0.50,
        0.50,
    ]


def test_a_sweep_that_never_gets_there_is_infinitely_far() -> None:
    there = [Ended(0, TrialState.COMPLETE, 2.0, 0.3), Ended(1, TrialState.COMPLETE, 6.0, 0.5)]
    faster = [Ended(1, TrialState.COMPLETE, 2.0, 0.5)]
    never = [Ended(0, TrialState.COMPLETE, 2.0, 0.3), Ended(1, TrialState.PRUNED, 3.0, None)]
    facts = {"target": 0.45, "best": 0.5, "worst": 0.1, "full_length_seconds": 0.5}
    found = _outcome([faster, never, faster], [there, there, there], facts)
    assert found["num_reached"] == 2
    assert found["seconds_by_seed"] == [2.0, None, 2.0]
    assert found["seconds"] == [2.0, 2.0, None]
    assert found["control_over_this"] == [None, 3.0, 3.0]
    half = _outcome([faster, never], [there, there], facts)
    assert half["control_over_this"] == [None, None, None]  # 3 and never have nothing between them
    below = found["points_below_best"]
    assert below["4"] == pytest.approx([0.0, 0.0, 10.0])  # after 2 s
    late = _outcome([there], [there], {**facts, "full_length_seconds": 0.4})
    assert late["points_below_best"]["4"][1] == pytest.approx(40.0)  # after 1.6 s: as the worst


def test_ranks_correlate() -> None:
    assert _rank_correlation([0.1, 0.2, 0.9], [1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert _rank_correlation([3.0, 2.0, 1.0], [1.0, 2.0, 9.0]) == pytest.approx(-1.0)
    assert _rank_correlation([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(0.75**0.5)


# --- the service's search -----------------------------------------------------------------------------------


def _search(*, is_random: bool, early_stopping: EarlyStopping | None = None) -> Search:
    return Search(_SPACE, 3, is_random=is_random, early_stopping=early_stopping, epochs=3)


def test_tpe_begins_where_random_search_does_and_then_learns_where_trials_ran() -> None:
    proposals: dict[bool, list[Mapping[str, Scalar]]] = {}
    for is_random in (True, False):
        search = _search(is_random=is_random)
        proposals[is_random] = []
        for number in range(20):
            asked = search.propose(number)
            proposals[is_random].append(asked)
            strength = 2.0 * (number % 5) / 4
            search.begin(number, {"temperature": 0.5, "augmentation_strength": strength})
            search.end(number, TrialState.COMPLETE, 3, -abs(strength - 0.5))
    assert proposals[True][:4] == proposals[False][:4]
    distances = {
        is_random: sum(abs(float(values["augmentation_strength"]) - 0.5) for values in found[10:])
        for is_random, found in proposals.items()
    }
    assert distances[False] < distances[True]


def test_random_points_are_those_of_the_service() -> None:
    search = _search(is_random=True)
    study = Study(_SPACE, 3)
    assert [search.propose(number) for number in range(3)] == [study.ask(2 * number) for number in range(3)]


def test_a_trial_that_lags_is_stopped_at_a_rung() -> None:
    search = _search(is_random=True, early_stopping=EarlyStopping(grace_epochs=1, reduction_factor=2))
    first_values = (0.3, 0.1, 0.4, 0.2)  # the last is compared with 0.3, the middle of the others
    for number, value in enumerate(first_values):
        search.begin(number, {"temperature": 0.1, "augmentation_strength": number / 2})
        assert search.measured(number, 1, value) is (number in (1, 3))


def test_a_collapsed_trial_is_a_bar_at_its_rung() -> None:
    search = _search(is_random=True, early_stopping=EarlyStopping(grace_epochs=1, reduction_factor=2))
    search.begin(0, {"temperature": 0.1, "augmentation_strength": 1.0})
    search.end(0, TrialState.INFEASIBLE, 1, 0.5)
    search.begin(1, {"temperature": 0.1, "augmentation_strength": 2.0})
    assert search.measured(1, 1, 0.4)


def test_without_early_stopping_trials_end_as_recorded() -> None:
    curves = [
        _curve(0, [0.2, 0.2], strength=0.0, state=TrialState.INFEASIBLE),
        _curve(1, [], strength=1.0, state=TrialState.FAILED),
        _curve(2, [0.3, 0.3, 0.3], strength=2.0),
    ]
    ended = simulate(Pool(_SPACE, curves), _search(is_random=False), num_workers=1)
    assert {(one.curve, one.state, one.value) for one in ended} == {
        (0, TrialState.INFEASIBLE, None),
        (1, TrialState.FAILED, None),
        (2, TrialState.COMPLETE, 0.3),
    }
    assert ended[-1].spent_seconds == 6.0


# --- the commands -------------------------------------------------------------------------------------------


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(_SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)


def test_replay_tells_what_was_spent_until_near_the_best(tmp_path: Path) -> None:
    file, figures = tmp_path / "curves.jsonl", tmp_path / "figures.json"
    good, bad = [0.3, 0.4, 0.5], [0.1, 0.1, 0.1]
    curves = (_curve(0, bad, strength=0.0), _curve(1, good, strength=1.0), _curve(2, bad, strength=2.0))
    head = {
        "space": _SPACE.model_dump(mode="json", exclude_none=True),
        "num_validation_images": 100,
        "command": "record",
        "seconds": "of one thread",
        "machine": {"device": "CPU"},
    }
    write(file, Recording(head, curves))
    assert read(file) == Recording(head, curves)
    options = ["--seeds", "5", "--workers", "1", "--early-stopping", "1/2", "--json", str(figures)]
    done = _run("replay", "--curves", str(file), *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(figures.read_text())
    assert report["recording"]["num_in_target"] == 1
    assert report["recording"]["standard_error"] == pytest.approx(0.05)
    assert report["recording"]["full_length_seconds"] == 3.0
    control = report["methods"]["random at full length"]
    assert set(control["seconds_by_seed"]) <= {3.0, 6.0, 9.0}
    assert control["control_over_this"][1] == 1.0
    assert control["num_reached"] == 5
    assert "| ASHA 1/2 + TPE | 5 of 5 | " in done.stdout


@pytest.mark.slow
def test_a_recording_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    options = ["--data", "cifar10-mini", "--images", "200"]
    assert _run("record", "--curves", str(whole), *options, "--runs", "2").returncode == 0
    assert _run("record", "--curves", str(halves), *options, "--runs", "1").returncode == 0
    assert len(read(halves).curves) == 1
    assert _run("record", "--curves", str(halves), *options, "--runs", "2").returncode == 0
    both = [[(one.parameters, one.state, one.metrics) for one in read(f).curves] for f in (whole, halves)]
    assert both[0] == both[1]
    assert [len(curve.seconds) for curve in read(whole).curves] == [12, 12]
    assert min(second for curve in read(whole).curves for second in curve.seconds) > 0

    refused = _run("record", "--curves", str(halves), *options, "--runs", "3", "--seed", "1")
    assert refused.returncode == 1
    assert "use another file" in refused.stderr
