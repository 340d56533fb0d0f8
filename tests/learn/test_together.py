"""Do several processes train the trial that one trains? Two on the CPU against one, or on two GPUs."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import together
import torch
from together import WAYS, differ, one_lacks_memory, some_images, two_epochs
from torch import Tensor
from training import CPU, run, trace

from care_sweep.errors import InvalidDocument, RankLost, TrialDiverged
from care_sweep.learn import gang as gang_module
from care_sweep.learn.data import Dataset
from care_sweep.learn.gang import Gang, _cause, _Failure
from care_sweep.learn.ranks import Ranks
from care_sweep.spec import Measurement, TrialConfig


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def listening_addresses() -> set[str]:
    """Of this process over IPv4, as the kernel writes them; any over IPv6 is `IPv6`."""
    sockets = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", name).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.add(local.partition(":")[0] if name == "tcp" else "IPv6")
    return found


# --- the same steps -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_way(tiny: Dataset) -> Iterator[dict[str, Any]]:
    """What two ranks find in every way; and how rank 0 takes it that the other hangs after them."""
    data, ranks, found = some_images(tiny), Ranks(0, 2), dict[str, Any]()

    def way(name: str) -> None:
        result = two_epochs(WAYS[name], data, ranks)
        assert not differ(ranks, result)
        found[name] = result

    with pytest.MonkeyPatch.context() as patch, Gang(2, CPU, together.every_way, data) as gang:
        for name in WAYS:
            gang.run(partial(way, name))
        found["listening"] = listening_addresses()
        patch.setattr(gang_module, "_COLLECTIVE_SECONDS", 0.5)
        with pytest.raises(RankLost) as caught:
            gang.run(lambda: None)
        found["hang"] = caught.value
    yield found
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_step_as_one(every_way: dict[str, Any], tiny: Dataset, name: str) -> None:
    """In float64, where only a difference in what is computed shows: seen were 5e-14, 6e-15 and 2e-12."""
    (losses, gradients, state), expected = every_way[name], two_epochs(WAYS[name], some_images(tiny), None)
    assert torch.allclose(losses, expected[0], rtol=1e-11, atol=1e-13)
    assert (gradients - expected[1]).norm() <= 1e-12 * expected[1].norm()
    assert state.keys() == expected[2].keys()
    for key, value in expected[2].items():
        assert torch.allclose(state[key], value, rtol=1e-9, atol=1e-10), key
    assert losses[0, 0] != losses[1, 0], "the ranks move the weights"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_ranks_listen_on_loopback_alone(every_way: dict[str, Any]) -> None:
    assert every_way["listening"] == {"0100007F"}


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(every_way: dict[str, Any]) -> None:
    assert str(every_way["hang"]) == "rank 1 of 2 does not answer"


# --- whole trials -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    config: TrialConfig, tiny: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Measurement], Path]:
    """A trial of two ranks, and where its states after each epoch are kept."""
    directory, kept = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("kept")

    def keep(measurement: Measurement) -> None:
        state = directory / f"state-{measurement.epoch:05d}.pt"
        shutil.copy(state, kept / f"after-{measurement.epoch}")

    measurements = run(config, tiny, directory, num_devices=2, then=keep)
    assert sorted(path.name for path in directory.iterdir()) == [
        "checkpoint.tar",
        "state-00002.pt",
        "state-00003.pt",
    ]
    return measurements, kept


def test_a_trial_of_two_is_the_trial_of_one(
    whole: tuple[list[Measurement], Path], config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    """To float32's rounding in its first steps, which later ones amplify."""
    alone, (measurements, _) = run(config, tiny, tmp_path), whole
    assert [set(m.metrics) for m in measurements] == [set(m.metrics) for m in alone]
    for name in ("train_loss", "train_info_nce", "train_equivariance"):
        found, expected = ([m.metrics[name] for m in trial] for trial in (measurements, alone))
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert found == pytest.approx(expected, rel=1e-2)


def test_a_state_of_two_goes_on_with_one(
    whole: tuple[list[Measurement], Path], config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    measurements, kept = whole
    (last,) = run(config, tiny, tmp_path, resume_from=kept / "after-2")
    assert last.metrics["train_loss"] == pytest.approx(measurements[-1].metrics["train_loss"], rel=1e-2)


@pytest.mark.slow
def test_a_trial_of_two_goes_on_to_the_bit_until_one_is_killed(
    whole: tuple[list[Measurement], Path],
    config: TrialConfig,
    tiny: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is killed within the second of three steps of the epoch after."""
    average, num_steps = Ranks.average, 0
    reported: list[Measurement] = []

    def average_then_kill(ranks: Ranks, gradients: list[Tensor]) -> None:
        nonlocal num_steps
        average(ranks, gradients)
        num_steps += 1
        if num_steps == 5:
            (other,) = multiprocessing.active_children()
            other.kill()

    monkeypatch.setattr(Ranks, "average", average_then_kill)
    with pytest.raises(RankLost, match="the process of rank 1 of 2 has died"):
        run(config, tiny, tmp_path, num_devices=2, resume_from=whole[1] / "after-1", then=reported.append)
    assert num_steps == 5
    assert trace(reported) == trace(whole[0])[1:2]
    assert (tmp_path / "state-00002.pt").read_bytes() == (whole[1] / "after-2").read_bytes()
    assert multiprocessing.active_children() == []


def test_what_several_devices_cannot_share_is_refused(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InvalidDocument, match=r"batch_size 32 .* by 3 GPUs: use 2, or multiples"):
        run(config, tiny, tmp_path, num_devices=3)
    compiled = config.model_copy(update={"compile": "always"})
    with pytest.raises(InvalidDocument, match="/compile: steps over several GPUs are not compiled"):
        run(compiled, tiny, tmp_path, num_devices=2)


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_want_of_memory_of_one_rank_is_heard_through_the_others() -> None:
    work = one_lacks_memory(Ranks(0, 3), CPU)
    with Gang(3, CPU, one_lacks_memory) as gang:
        gang.run(lambda: next(work))
        with pytest.raises(
            torch.OutOfMemoryError, match=r"^rank 2 of 3: OutOfMemoryError: CUDA out of memory"
        ):
            gang.run(lambda: next(work))


MEMORY, OTHER = _Failure("memory", "no memory"), _Failure("other", "KeyError")
DIED, SILENT, DEAF = _Failure("died", "dead"), _Failure("silent", "mute"), _Failure("deaf", "alone")
DIVERGED, LOST = TrialDiverged("nan"), RankLost("closed by peer")


@pytest.mark.parametrize(
    ("failures", "own", "kind", "message"),
    [
        ([DEAF, OTHER, MEMORY], LOST, torch.OutOfMemoryError, "no memory"),
        ([DEAF, DIED, OTHER], LOST, RuntimeError, "KeyError"),
        ([DEAF, DIED], LOST, RankLost, "dead"),
        ([DIED], DIVERGED, RankLost, "dead"),  # what is aborted on a GPU leaves any numbers behind
        ([_Failure("trial", "nan there")], DIVERGED, TrialDiverged, "nan"),
        ([_Failure("trial", "nan there")], LOST, RuntimeError, "nan there"),
        ([SILENT], DIVERGED, TrialDiverged, "nan"),
        ([SILENT], MemoryError("here"), MemoryError, "here"),
        ([SILENT], LOST, RankLost, "mute"),
        ([SILENT], None, RankLost, "mute"),
        ([], LOST, RankLost, "closed by peer"),
    ],
)
def test_who_fails_is_told_from_who_only_suffers_it(
    failures: list[_Failure], own: Exception | None, kind: type[Exception], message: str
) -> None:
    cause = _cause(failures, own)
    assert (type(cause), str(cause)) == (kind, message)


def test_nothing_is_wrong_where_nobody_says_so() -> None:
    assert _cause([], None) is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process hears of its parent's death on Linux only")
def test_no_process_outlives_the_one_that_trains(tmp_path: Path) -> None:
    script, pid_file = Path(together.__file__), tmp_path / "pid"
    parent = subprocess.run([sys.executable, script, pid_file], check=False, timeout=120)
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while runs(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- on GPUs ------------------------------------------------------------------------------------------------

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize("change", WAYS.values(), ids=WAYS.keys())
def test_two_gpus_train_as_one(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, change: dict[str, object]
) -> None:
    """To 2 % in an epoch: what rounding alone makes of its three steps is less."""
    told = {**config.model_dump(), **change, "queue_size": 50, "precision": "float32", "compile": "never"}
    losses = []
    for num_devices in (1, 2):
        measurements = run(
            TrialConfig.model_validate(told),
            tiny,
            tmp_path / str(num_devices),
            num_devices=num_devices,
            device=torch.device("cuda"),
        )
        losses.append([m.metrics["train_loss"] for m in measurements][:1])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
@two_gpus
def test_a_killed_process_of_a_gpu_ends_the_attempt(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    def kill(measurement: Measurement) -> None:
        (other,) = multiprocessing.active_children()
        os.kill(other.pid or 0, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(RankLost, match="has died"):
        run(config, tiny, tmp_path, num_devices=2, device=torch.device("cuda"), then=kill)
    assert time.monotonic() - began < gang_module._COLLECTIVE_SECONDS
