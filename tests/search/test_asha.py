"""Successive halving: rungs, decisions, what a replay or a repeated epoch changes, and what Ray decides."""

import random
from types import SimpleNamespace

import pytest

from care_sweep.search.asha import SuccessiveHalving
from care_sweep.spec import EarlyStopping


def halving(grace_epochs: int = 1, reduction_factor: int = 2, epochs: int = 10) -> SuccessiveHalving:
    return SuccessiveHalving(
        EarlyStopping(grace_epochs=grace_epochs, reduction_factor=reduction_factor), epochs
    )


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "rungs"),
    [
        (1, 4, 100, (1, 4, 16, 64)),
        (5, 4, 100, (5, 20, 80)),
        (5, 5, 125, (5, 25)),
        (1, 2, 2, (1,)),
        (5, 4, 5, ()),
        (8, 4, 3, ()),
    ],
)
def test_rungs_stand_before_the_last_epoch(
    grace: int, factor: int, epochs: int, rungs: tuple[int, ...]
) -> None:
    assert halving(grace, factor, epochs).rungs == rungs


def test_the_first_goes_on_and_the_worse_one_stops() -> None:
    asha = halving()
    assert not asha.observe(0, 1, 0.5)
    assert asha.observe(1, 1, 0.4)
    assert not asha.observe(2, 1, 0.6)


def test_a_tie_with_the_quantile_goes_on() -> None:
    asha = halving()
    asha.observe(0, 1, 0.5)
    assert not asha.observe(1, 1, 0.5)


def test_a_stopped_trial_stays_a_bar_for_later_ones() -> None:
    with_stopped, without = halving(), halving()
    for asha in (with_stopped, without):
        asha.observe(0, 1, 0.9)
    assert with_stopped.observe(1, 1, 0.1)
    assert not with_stopped.observe(2, 1, 0.6)  # the median of 0.9 and 0.1 is 0.5
    assert without.observe(2, 1, 0.6)


def test_the_last_epoch_and_epochs_before_the_grace_period_are_not_judged() -> None:
    asha = halving(grace_epochs=3, epochs=6)
    for number, value in enumerate((0.9, 0.1)):
        for epoch in (1, 2, 6):
            assert not asha.observe(number, epoch, value)


def test_the_same_rung_twice_counts_once() -> None:
    asha, once = halving(reduction_factor=4), halving(reduction_factor=4)
    for number in range(6):
        assert asha.observe(number, 1, number / 10) == once.observe(number, 1, number / 10)
        assert not asha.observe(number, 1, 0.0)  # a resumed trial repeats the epoch
        asha.refill(number, 1, 1.0)
        assert not asha.observe(number, 2, 0.0)  # still the first rung
    assert asha.observe(9, 1, 0.37) == once.observe(9, 1, 0.37)


def test_a_value_that_is_not_finite_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="trial 3 reported nan at epoch 1"):
        halving().observe(3, 1, float("nan"))


def stream(rng: random.Random, epochs: int) -> list[tuple[int, int, float]]:
    """Reports of up to 30 trials, epochs in order within a trial, trials interleaved, some with ties."""
    num_trials = rng.randint(1, 30)
    progress = dict.fromkeys(range(num_trials), 0)
    reports = []
    while progress:
        number = rng.choice(list(progress))
        progress[number] += 1
        reports.append((number, progress[number], round(rng.random(), rng.choice((1, 2, 12)))))
        if progress[number] == epochs:
            del progress[number]
    return reports


@pytest.mark.parametrize("seed", range(20))
def test_a_refilled_scheduler_decides_as_the_one_that_lived(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  (dice, not secrets)
    reports = stream(rng, epochs=12)
    lived, refilled = halving(2, 2, 12), halving(2, 2, 12)
    cut = rng.randrange(len(reports))
    for report in reports[:cut]:
        lived.observe(*report)
    for report in sorted(reports[:cut]):  # the store answers trial by trial
        refilled.refill(*report)
        refilled.refill(*report)
    for report in reports[cut:]:
        assert lived.observe(*report) == refilled.observe(*report)


@pytest.mark.ray
def test_decisions_equal_those_of_ray() -> None:
    """200 random streams, decision by decision; a trial once stopped reports no more. No cluster starts."""
    from ray.tune.schedulers import ASHAScheduler

    num_stopped = 0
    for seed in range(200):
        rng = random.Random(seed)  # noqa: S311  (dice, not secrets)
        grace, factor, epochs = rng.randint(1, 6), rng.randint(2, 5), rng.randint(6, 40)
        ours = halving(grace, factor, epochs)
        rays = ASHAScheduler(
            time_attr="epoch",
            metric="value",
            mode="max",
            max_t=epochs,
            grace_period=grace,
            reduction_factor=factor,
        )
        stopped: set[int] = set()
        trials: dict[int, SimpleNamespace] = {}
        for number, epoch, value in stream(rng, epochs):
            if number in stopped:
                continue
            if number not in trials:
                trials[number] = SimpleNamespace(trial_id=str(number))
                rays.on_trial_add(None, trials[number])
            stop = ours.observe(number, epoch, value)
            action = rays.on_trial_result(None, trials[number], {"epoch": epoch, "value": value})
            assert (action == rays.STOP) == (stop or epoch >= epochs), (seed, number, epoch)
            if stop:
                stopped.add(number)
        num_stopped += len(stopped)
    assert num_stopped > 1000
