"""What a trial leaves to go on from: whole, of its moment, and refused where it is damaged or of another."""

import dataclasses
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import CPU, run, stop_after

from care_sweep.errors import CheckpointError
from care_sweep.learn import state as state_module
from care_sweep.learn import train as train_module
from care_sweep.learn.data import Dataset
from care_sweep.learn.state import opened, sealed, written_beside
from care_sweep.spec import Measurement, TrialConfig
from care_sweep.storage.durable import write_durably


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_what_report_raises_passes_through_and_leaves_whole_files(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, error: type[BaseException]
) -> None:
    def stop(_: Measurement) -> None:
        raise error

    with pytest.raises(error):
        run(config, tiny, tmp_path, then=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00001.pt"]


def test_a_state_is_written_while_its_epoch_is_evaluated(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other, and the report for both."""
    is_written, is_evaluated = threading.Event(), threading.Event()
    knn_metrics = train_module.knn_metrics

    def write(path: Path, content: bytes) -> None:
        is_written.set()
        assert is_evaluated.wait(30)
        time.sleep(0.2)
        write_durably(path, content)

    def evaluate(*arguments: Any) -> dict[str, float]:
        assert is_written.wait(30)
        is_evaluated.set()
        return knn_metrics(*arguments)

    monkeypatch.setattr(state_module, "write_durably", write)
    monkeypatch.setattr(train_module, "knn_metrics", evaluate)
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path, then=stop_after(1))
    assert (tmp_path / "state-00001.pt").is_file()


def test_an_epoch_whose_state_cannot_be_written_is_not_reported(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left", str(path))

    def unexpected(measurement: Measurement) -> None:
        raise AssertionError(f"epoch {measurement.epoch} was reported")

    monkeypatch.setattr(state_module, "write_durably", refuse)
    with pytest.raises(OSError, match="no space left"):
        run(config, tiny, tmp_path, then=unexpected)


def test_a_failed_evaluation_leaves_no_half_written_state(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> None:
        time.sleep(0.2)
        write_durably(path, content)

    def fail(*_: Any) -> dict[str, float]:
        raise RuntimeError("no neighbours")

    monkeypatch.setattr(state_module, "write_durably", write)
    monkeypatch.setattr(train_module, "knn_metrics", fail)
    with pytest.raises(RuntimeError, match="no neighbours"):
        run(config, tiny, tmp_path)
    assert opened(tmp_path / "state-00001.pt", CPU)["num_epochs_done"] == 1


@pytest.mark.gpu
def test_a_state_is_of_the_moment_at_which_its_writing_began(tmp_path: Path) -> None:
    weights = torch.arange(2**24, dtype=torch.float32, device="cuda")
    with written_beside(tmp_path / "state", {"model": {"weights": weights}}, weights.device):
        weights.zero_()
    found = opened(tmp_path / "state", CPU)["model"]["weights"]
    assert torch.equal(found, torch.arange(2**24, dtype=torch.float32))


def test_states_of_others_and_damaged_states_are_refused(
    config: TrialConfig, tiny: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path, then=stop_after(1))
    state = tmp_path / "state-00001.pt"
    with pytest.raises(CheckpointError, match="another configuration"):
        run(config.model_copy(update={"temperature": 0.1}), tiny, tmp_path, resume_from=state)
    with pytest.raises(CheckpointError, match="another configuration or dataset"):
        run(config, dataclasses.replace(tiny, fingerprint="1" * 64), tmp_path, resume_from=state)
    with pytest.raises(CheckpointError, match="no readable training state"):
        run(config, tiny, tmp_path, resume_from=tmp_path / "absent.pt")
    for content in (b"", b"junk", state.read_bytes()[:-100]):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match="no readable training state"):
            run(config, tiny, tmp_path, resume_from=state)


def test_no_damage_to_a_state_is_unseen(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    trial = train_module._Trial(config, tiny, CPU)
    path, small = tmp_path / "state-00001.pt", tmp_path / "small.pt"
    trial.num_epochs_done = 1
    path.write_bytes(sealed(trial.state({"train_loss": 1.0})))
    small.write_bytes(sealed({"num_epochs_done": 1, "weights": torch.arange(60.0)}))
    assert trial.restore(path) == {"train_loss": 1.0}
    assert opened(small, CPU)["num_epochs_done"] == 1
    source = torch.Generator().manual_seed(0)
    for file, num_flips in ((small, 90), (path, 10)):
        whole = file.read_bytes()
        for place in torch.randint(8 * len(whole), (num_flips,), generator=source).tolist():
            with file.open("r+b") as damaged:
                damaged.seek(place // 8)
                damaged.write(bytes([whole[place // 8] ^ 1 << place % 8]))
            with pytest.raises(CheckpointError, match=f"{file}: .*train anew"):
                opened(file, CPU)
            file.write_bytes(whole)
        for length in (0, 1, 30, 70, *torch.randint(len(whole), (6,), generator=source).tolist()):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=f"{file}: .*train anew"):
                opened(file, CPU)
        file.write_bytes(whole + b"more")
        with pytest.raises(CheckpointError, match="SHA-256"):
            opened(file, CPU)


def test_a_state_of_an_older_version_is_refused(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    torch.save({"config": config.model_dump_json()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="written by an older care-sweep; train anew"):
        run(config, tiny, tmp_path, resume_from=tmp_path / "state.pt")


UNFIT: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"no {name}": lambda state, name=name: state.pop(name)
        for name in ("config", "model", "base", "losses")
    },
    **{
        f"without {name}": lambda state, name=name: state.pop(name)
        for name in ("optimizer", "num_epochs_done")
    },
    "a weight of another shape": lambda state: state["model"].update({"projector.3.bias": torch.zeros(7)}),
    "a weight of another type": lambda state: state["model"].update(
        {"projector.3.bias": torch.zeros(128, dtype=torch.float64)}
    ),
    "a stranger": lambda state: state["model"].update(stranger=torch.zeros(1)),
    "a base's stranger": lambda state: state["base"].update(queue=torch.zeros(1)),
    "moments of another shape": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "fewer parameters": lambda state: state["optimizer"]["param_groups"][0]["params"].pop(),
    "no groups": lambda state: state["optimizer"].pop("param_groups"),
    "more epochs than all": lambda state: state.update(num_epochs_done=4),
    "no epoch": lambda state: state.update(num_epochs_done=0),
    "words": lambda state: state.update(num_epochs_done="many"),
    "losses of words": lambda state: state.update(losses=["train_loss"]),
}


@pytest.fixture(scope="module")
def state_after_an_epoch(tiny: Dataset) -> tuple[TrialConfig, bytes]:
    config = TrialConfig(encoder="resnet_tiny", epochs=3, batch_size=32, num_splits=4)
    trial = train_module._Trial(config, tiny, CPU)
    return config, sealed(trial.state(trial.train_epoch()))


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT.keys())
def test_a_state_that_does_not_fit_leaves_the_trial_as_it_was(
    state_after_an_epoch: tuple[TrialConfig, bytes],
    tiny: Dataset,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
) -> None:
    config, content = state_after_an_epoch
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    state = opened(path, CPU)
    change(state)
    path.write_bytes(sealed(state))
    trial = train_module._Trial(config, tiny, CPU)
    before = sealed(trial.state({}))
    with pytest.raises(CheckpointError, match=f"{path}: its parts do not make this trial .*train anew"):
        trial.restore(path)
    assert sealed(trial.state({})) == before


def test_a_state_is_never_unpickled(config: TrialConfig, tiny: Dataset, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (str(tmp_path / "harm"),)

    (tmp_path / "state.pt").write_bytes(sealed({"config": Harmful()}))
    with pytest.raises(CheckpointError, match="no readable training state"):
        run(config, tiny, tmp_path, resume_from=tmp_path / "state.pt")
    assert not (tmp_path / "harm").exists()
