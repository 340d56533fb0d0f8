"""Which number of trials at once is chosen, and are they really timed and their failures told?"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from care_sweep.learn import packing
from care_sweep.learn.data import Dataset, Split, load_dataset
from care_sweep.learn.packing import Order, PackError, Packing, Processes, keep_to_share, time_packing
from care_sweep.spec import TrialConfig

GIB = 2**30


@pytest.mark.parametrize(
    ("rates", "memory_gib", "num_trials"),
    [
        ({1: 100.0}, 1, 1),
        ({1: 100.0, 2: 150.0, 4: 200.0, 8: 300.0}, 1, 8),
        ({1: 100.0, 2: 150.0, 4: 160.0, 8: 300.0}, 1, 2),
        ({1: 100.0, 2: 109.0, 4: 300.0}, 1, 1),
        ({1: 100.0, 2: 111.0, 4: 123.0}, 1, 4),
        ({1: 100.0, 2: 150.0, 4: 200.0, 8: 300.0}, 16, 4),
        ({1: 100.0, 2: 150.0, 4: 200.0, 8: 300.0}, 18, 2),
        ({1: 100.0, 2: 50.0}, 1, 1),
    ],
)
def test_trials_are_doubled_while_that_gains_a_tenth_and_fits(
    rates: dict[int, float], memory_gib: int, num_trials: int
) -> None:
    assert Packing(rates, memory_gib * GIB, 80 * GIB).num_trials == num_trials


def few_images() -> Dataset:
    """100 for training, of which an epoch of one step takes 32."""
    data = load_dataset("cifar10-mini", download_directory=Path("unused"))
    train = Split(data.train.images[:100], data.train.labels[:100])
    validation = Split(data.validation.images[:20], data.validation.labels[:20])
    return dataclasses.replace(data, train=train, validation=validation)


def order(config: TrialConfig, **changes: object) -> Order:
    told = {**config.model_dump(), **changes}
    return Order(TrialConfig.model_validate(told), few_images, "cpu", num_steps=1)


@pytest.mark.slow
def test_a_trial_that_cannot_be_built_is_told_and_one_that_dies_leaves_the_others(
    config: TrialConfig,
) -> None:
    with Processes() as pack:
        pack.prepare(order(config, batch_size=16_384), 1)
        with pytest.raises(PackError, match="fewer than batch_size 16384"):
            pack.run(1, 0.1)
        pack.prepare(order(config), 2)
        rates = pack.run(2, 0.2)
        assert len(rates) == 2
        assert min(rates) > 0
        assert len(pack.run(1, 0.1)) == 1
        with pytest.raises(PackError, match="there are 2 trials, not 3"):
            pack.run(3, 0.1)
        pack._processes[1].kill()
        pack._processes[1].join()
        with pytest.raises(PackError, match="its process has died"):
            pack.run(2, 0.1)
        assert len(pack.run(1, 0.1)) == 1
        processes = list(pack._processes)
    assert not any(process.is_alive() for process in processes)


@pytest.mark.slow
def test_one_trial_and_two_are_really_timed(config: TrialConfig) -> None:
    found = time_packing(order(config), 2, seconds=200, turn_seconds=0.2)
    assert set(found.rates) == {1, 2}
    assert min(found.rates.values()) > 0
    assert found.free_bytes > 0


class Pack:
    """In the place of processes: two trials have 1.5 times the rate of one, four fail."""

    def __init__(self) -> None:
        self.added: list[int] = []
        type(self).last = self

    last: ClassVar["Pack"]

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def add(self, _: Order, num_trials: int) -> None:
        self.added.append(num_trials)

    def measure(self) -> int:
        return 0

    def run(self, num_trials: int, _: float) -> list[float]:
        if num_trials == 4:
            raise PackError("no memory is left")
        return {1: [100.0], 2: [75.0, 75.0]}[num_trials]


@pytest.mark.parametrize(
    ("most", "seconds", "timed", "built"),
    [
        (1, 60, {1}, [1]),
        (2, 60, {1, 2}, [1, 1]),
        (3, 60, {1, 2}, [1, 1]),
        (8, 60, {1, 2}, [1, 1, 2]),
        (8, 0, {1}, [1]),
    ],
)
def test_no_more_is_timed_than_was_asked_for_or_can_be(
    config: TrialConfig,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    seconds: int,
    timed: set[int],
    built: list[int],
) -> None:
    monkeypatch.setattr(packing, "Processes", Pack)
    monkeypatch.setattr(packing, "_free_bytes", lambda _: 0)
    found = time_packing(order(config), most, seconds=seconds)
    assert set(found.rates) == timed
    assert Pack.last.added == built


def test_on_a_cpu_nobody_is_kept_to_a_share() -> None:
    keep_to_share(0.25, torch.device("cpu"))


@pytest.mark.gpu
def test_on_a_gpu_more_than_a_share_is_refused() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        keep_to_share(0.1, device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 10, dtype=torch.uint8, device=device)
        assert torch.empty(total // 20, dtype=torch.uint8, device=device).numel() == total // 20
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_on_a_gpu_a_trial_has_memory_and_several_are_timed(config: TrialConfig) -> None:
    on_gpu = dataclasses.replace(order(config), device="cuda")
    found = time_packing(on_gpu, 2, seconds=400)
    assert found.memory_bytes > 100 * 2**20, "a context alone has more"
    assert found.has_room_for(2)
    assert set(found.rates) == {1, 2}
