"""A sweep whose trials hold two GPUs each, on a real Ray that was told of GPUs that are not there."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from conducting import Sweep

from benchmarks.few_images import cut_few_images
from care_sweep.run.tuning import run_trials
from care_sweep.settings import Settings
from care_sweep.spec import TrialState

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def two_gpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = _parent_of(pid)
    return False


def _further_ranks() -> list[int]:
    """The processes below this one that multiprocessing has spawned."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            is_spawned = b"multiprocessing.spawn" in (folder / "cmdline").read_bytes()
            if is_spawned and _descends_from(int(folder.name), os.getpid()):
                found.append(int(folder.name))
    return found


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trial_that_loses_one_of_its_processes_is_attempted_again(
    make_sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    settings = Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path / "home")})
    dataset = cut_few_images(settings.data_roots[0] / "few")
    fixed = {"dataset": dataset, "encoder": "resnet_tiny", "epochs": 2, "batch_size": 32, "num_splits": 4}
    space = {
        "parameters": {"temperature": {"type": "float", "low": 0.1, "high": 1.0}},
        "fixed": {**fixed, "probe_epochs": 5},
    }
    sweep = make_sweep(space=space, num_trials=1, early_stopping="none", resources={"gpus_per_trial": 2})
    sweep.clock = time.monotonic  # type: ignore[assignment]  # its own would stand still
    killed: list[int] = []

    def kill_the_first() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            time.sleep(0.05)
            for pid in _further_ranks()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killing = threading.Thread(target=kill_the_first)
    killing.start()
    run_trials(sweep.conduct(), settings)
    killing.join()
    (trial,) = sweep.store.trials(sweep.id).items
    assert (trial.state, trial.attempt) == (TrialState.COMPLETE, 2)
    first, _ = sweep.store.attempts(sweep.id, 0)
    assert (first.reason, first.message) == ("worker lost", "the process of rank 1 of 2 has died")
    measured = sweep.store.measurements(sweep.id, 0)
    assert sweep.store.sweep(sweep.id).gpu_seconds == pytest.approx(2 * sum(m.seconds for m in measured))
    assert _further_ranks() == []
