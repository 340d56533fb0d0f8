"""One trial in a folder: a second is refused, and its log has one line an epoch wherever it is stopped."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.few_images import cut_few_images
from care_sweep.errors import CheckpointError, Conflict
from care_sweep.learn import state as state_module
from care_sweep.one_trial import train_one
from care_sweep.settings import Settings
from care_sweep.spec import Measurement, TrialConfig
from care_sweep.storage.durable import write_durably

LEFT = ["checkpoint.tar", "config.json", "measurements.jsonl", "state-00002.pt", "state-00003.pt"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    dataset = cut_few_images(tmp_path_factory.mktemp("images") / "few", num_classes=2)
    return TrialConfig(
        dataset=dataset,
        encoder="resnet_tiny",
        epochs=3,
        batch_size=32,
        num_splits=4,
        knn_neighbors=5,
        probe_epochs=1,
    )


def train_into(
    config: TrialConfig, folder: Path, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """What is told at the end."""
    console, settings = Console(file=io.StringIO()), Settings.from_environment({})
    return train_one(console, config, settings, folder, download=False, resume=resume, overwrite=overwrite)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["metrics"] for line in (folder / "measurements.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_into(config, folder)
    return folder


@pytest.fixture
def whole(uninterrupted: Path, tmp_path: Path) -> Path:
    """A trial's folder that may be changed."""
    return shutil.copytree(uninterrupted, tmp_path / "whole")


def stop_at(monkeypatch: pytest.MonkeyPatch, moment: str, epoch: int) -> None:
    """Ctrl-C just before or after the state of an epoch is durable, or once its line is in the log."""

    def write(path: Path, content: bytes) -> None:
        is_it = path.name == f"state-{epoch:05d}.pt"
        if is_it and moment == "before the state":
            raise KeyboardInterrupt
        write_durably(path, content)
        if is_it and moment == "after the state":
            raise KeyboardInterrupt

    monkeypatch.setattr(state_module, "write_durably", write)
    if moment == "after the line":

        def forgotten(path: Path, missing_ok: bool = False) -> None:
            if path.name == f"state-{epoch - 2:05d}.pt":
                raise KeyboardInterrupt

        monkeypatch.setattr(Path, "unlink", forgotten)


@pytest.mark.parametrize(
    ("moment", "epoch"),
    [
        *(("after the state", epoch) for epoch in (1, 2, 3)),
        *(("after the line", epoch) for epoch in (1, 3)),
        ("before the state", 2),
    ],
)
def test_no_line_is_missing_or_doubled(
    config: TrialConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, epoch: int
) -> None:
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_at(patched, moment, epoch)
        train_into(config, folder)
    told = train_into(config, folder, resume=True)
    assert log_of(folder) == log_of(whole)
    assert told["metrics"] == log_of(whole)[-1]
    assert (folder / "checkpoint.tar").read_bytes() == (whole / "checkpoint.tar").read_bytes()
    assert sorted(path.name for path in folder.iterdir() if path.name != "state-00001.pt") == LEFT


@pytest.mark.parametrize("torn", ['{"epoch": 3, "metr', '{"epoch": 3}\n', "\n", '{"epoch": 2}'])
def test_a_torn_line_is_told_again(config: TrialConfig, whole: Path, tmp_path: Path, torn: str) -> None:
    lines = (whole / "measurements.jsonl").read_text().splitlines(keepends=True)
    expected = log_of(whole)
    (whole / "measurements.jsonl").write_text("".join(lines[:2]) + torn)
    train_into(config, whole, resume=True)
    assert log_of(whole) == expected


def test_states_without_their_lines_are_refused(config: TrialConfig, whole: Path) -> None:
    (whole / "measurements.jsonl").unlink()
    with pytest.raises(
        CheckpointError, match=r"epochs up to 0, but the states are of epoch 2 and 3: train anew"
    ):
        train_into(config, whole, resume=True)
    with pytest.raises(CheckpointError, match="no training state to go on from"):
        train_into(config, whole.parent / "empty", resume=True)
    assert not (whole.parent / "empty").exists()


@pytest.mark.parametrize("kept", ["state-00003.pt", "measurements.jsonl", "checkpoint.tar"])
def test_a_folder_that_holds_a_trial_is_refused(config: TrialConfig, tmp_path: Path, kept: str) -> None:
    folder = tmp_path / "another"
    folder.mkdir()
    (folder / kept).write_bytes(b"of a trial")
    with pytest.raises(Conflict, match=rf"another holds a trial already \({kept}\)") as caught:
        train_into(config, folder)
    assert all(remedy in str(caught.value) for remedy in ("--resume", "--output", "--overwrite"))
    assert [path.name for path in folder.iterdir()] == [kept]
    assert (folder / kept).read_bytes() == b"of a trial"


def test_overwriting_leaves_nothing_of_the_first_trial_and_all_else(config: TrialConfig, whole: Path) -> None:
    (whole / "notes.txt").write_text("mine")
    (whole / "state-00009.pt").write_bytes(b"stale")
    shorter = config.model_copy(update={"epochs": 2, "seed": 1})
    train_into(shorter, whole, overwrite=True)
    assert [one["num_validation_images"] for one in log_of(whole)] == [12.0, 12.0]
    assert json.loads((whole / "config.json").read_text())["seed"] == 1
    left = {path.name for path in whole.iterdir()}
    assert left == {"notes.txt", *LEFT} - {"state-00003.pt"} | {"state-00001.pt"}


def test_a_measurement_is_what_a_line_holds(whole: Path) -> None:
    lines = (whole / "measurements.jsonl").read_text().splitlines()
    assert [Measurement.model_validate_json(line).epoch for line in lines] == [1, 2, 3]
