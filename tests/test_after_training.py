"""`care-sweep report`, `test`, `views`, `embed` and `export-weights`: what they write, print and refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from benchmarks.few_images import cut_few_images
from care_sweep.cli import app
from care_sweep.learn import final_report
from care_sweep.learn.checkpoint import save
from care_sweep.learn.data import load_dataset
from care_sweep.learn.encoder import EncoderName, build_model
from care_sweep.spec import TrialConfig

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Types a command in an empty folder and checks its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, status: int = 0) -> Any:
        environment = {"COLUMNS": "200", "CARE_SWEEP_HOME": str(tmp_path / "home")}
        result = CliRunner().invoke(app, arguments, env=environment, prog_name="care-sweep")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == status, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the checkpoints of two untrained encoders for them."""
    folder = tmp_path_factory.mktemp("trial")
    dataset = cut_few_images(folder / "few")
    data = load_dataset(dataset, download_directory=folder)
    encoders: tuple[EncoderName, ...] = ("resnet_tiny", "resnet18")
    for encoder in encoders:
        values = {"dataset": dataset, "encoder": encoder, "knn_neighbors": 5, "probe_epochs": 1}
        config = TrialConfig.model_validate({**values, "batch_size": 32, "num_splits": 4})
        model = build_model(encoder, 0)
        probe = nn.Linear(model.num_features, len(data.class_names))
        save(folder / f"{encoder}.tar", model=model, probe=probe, config=config, metrics={}, data=data)
    images = folder / "images"
    images.mkdir()
    for number, image in enumerate(data.train.images[:3]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((50, 40)).save(images / f"{number}.png")
    return folder


def test_report(run: Run, trial: Path, tmp_path: Path) -> None:
    checkpoint = str(trial / "resnet_tiny.tar")
    assert run("report", checkpoint).stdout == "resnet_tiny-report.html\n"
    page = (tmp_path / "resnet_tiny-report.html").read_text()
    assert "No curves" in page
    epochs = [{"epoch": n, "metrics": {"train_loss": 1 / n}, "seconds": 1.0} for n in (1, 2, 2)]
    answer = [{**one, "attempt": 1, "recorded_at": "2026-01-01T00:00:00Z"} for one in epochs]
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    told = run("report", checkpoint, "--measurements", "answer.json", "--output", "a.html", "--json").stdout
    assert (json.loads(told)["path"], json.loads(told)["num_epochs_shown"]) == ("a.html", 2)
    assert "wahba_error" in json.loads(told)["metrics"]
    assert "<figcaption>train_loss</figcaption>" in (tmp_path / "a.html").read_text()


def test_what_report_refuses(run: Run, trial: Path, tmp_path: Path) -> None:
    checkpoint = str(trial / "resnet_tiny.tar")
    assert "cannot be read" in run("report", "nothing.tar", status=1).stderr
    assert "there is no" in run("report", checkpoint, "--dataset", "parquet:nothing", status=1).stderr
    nothing = ("no JSON", "1", "[1]", '{"measurements": null}', '{"epoch": 1}')
    for content in (*nothing, '[{"epoch": 0, "metrics": {}, "seconds": 1}]', '{"epoch": 1}\n{"epoch":'):
        (tmp_path / "log").write_text(content)
        assert "log: " in run("report", checkpoint, "--measurements", "log", status=1).stderr


def test_each_reading_of_the_test_split_is_counted(run: Run, trial: Path, tmp_path: Path) -> None:
    checkpoint, other = str(trial / "resnet_tiny.tar"), str(trial / "resnet18.tar")
    first = json.loads(run("test", checkpoint, "--json").stdout)
    assert first["num_reads"] == 1
    assert set(first["metrics"]) == {
        *("test_knn_accuracy", "num_test_images"),
        *("test_probe_accuracy", "test_probe_accuracy_mean", "test_probe_accuracy_spread"),
    }
    assert first["metrics"]["num_test_images"] == 50
    assert "read 2 of this test split; all are in " in run("test", other).stdout
    assert json.loads(run("test", checkpoint, "--dataset", "cifar10-mini", "--json").stdout)["num_reads"] == 1
    again = json.loads(run("test", checkpoint, "--json").stdout)
    assert (again["num_reads"], again["metrics"]) == (3, first["metrics"])
    lines = [json.loads(line) for line in (tmp_path / "home" / "test-reads.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 1, 3]
    assert [line["checkpoint"] for line in lines] == [checkpoint, other, checkpoint, checkpoint]
    assert len({line["manifest_sha256"] for line in lines}) == 2
    assert all(line["user"] and line["read_at"] for line in lines)


def test_images_that_have_changed_since_are_tested_on_by_name_alone(run: Run, tmp_path: Path) -> None:
    """Their test split is cut anew, and so holds images that the encoder was trained with."""
    images = tmp_path / "images"
    for number in range(40):
        file = images / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    name = f"folder:{images}"
    data = load_dataset(name, download_directory=tmp_path)
    values = {"encoder": "resnet_tiny", "knn_neighbors": 5, "probe_epochs": 1, "batch_size": 8}
    config = TrialConfig.model_validate({"dataset": name, "num_splits": 4, **values})
    model = build_model("resnet_tiny", 0)
    probe = nn.Linear(model.num_features, len(data.class_names))
    save(tmp_path / "it.tar", model=model, probe=probe, config=config, metrics={}, data=data)
    assert json.loads(run("test", "it.tar", "--json").stdout)["same_images"]
    assert "not the images" not in run("test", "it.tar").stdout

    (images / "a" / "0.png").unlink()
    refused = run("test", "it.tar", status=1).stderr
    assert "has changed since the encoder was trained with it" in " ".join(refused.split())
    assert len((tmp_path / "home" / "test-reads.jsonl").read_text().splitlines()) == 2
    assert not json.loads(run("test", "it.tar", "--dataset", name, "--json").stdout)["same_images"]
    assert "these are not the images it was trained with" in run("test", "it.tar", "--dataset", name).stdout


def test_what_fails_while_it_reads_has_counted(
    run: Run, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the power went")

    monkeypatch.setattr(final_report, "accuracies_on_test", fail)
    run("test", str(trial / "resnet_tiny.tar"), status=1)
    assert len((tmp_path / "home" / "test-reads.jsonl").read_text().splitlines()) == 1


def test_views(run: Run, tmp_path: Path) -> None:
    made = json.loads(run("views", "--strength", "0.5", "1", "1.5", "--output", "sheet.png", "--json").stdout)
    assert made == {"path": "sheet.png", "strengths": [0.5, 1.0, 1.5]}
    assert run("views", "--strength", "1").stdout == "views.png\n"
    with Image.open(tmp_path / "sheet.png") as three, Image.open(tmp_path / "views.png") as one:
        assert three.height > 2.5 * one.height
    run("views", "--strength", "3", status=2)
    run("views", "--strength", "1", "nonsense", status=2)
    assert "unknown dataset" in run("views", "--dataset", "nonsense", status=1).stderr


def test_embed(run: Run, trial: Path, tmp_path: Path) -> None:
    images, checkpoint = str(trial / "images"), str(trial / "resnet_tiny.tar")
    shown = run("embed", images, "--checkpoint", checkpoint, "--output", "out.parquet").stdout
    assert shown == "3 images: out.parquet\n"
    assert pq.read_table(tmp_path / "out.parquet")["path"].to_pylist() == ["0.png", "1.png", "2.png"]
    run("embed", images, status=2)
    assert "is not a folder" in run("embed", "nothing", "--checkpoint", checkpoint, status=1).stderr


def test_export_weights(run: Run, trial: Path, tmp_path: Path) -> None:
    checkpoint = str(trial / "resnet18.tar")
    made = json.loads(run("export-weights", checkpoint, "--output", "plain.pt", "--json").stdout)
    assert made == {"path": "plain.pt", "network": "resnet18", "num_classes": 10}
    assert torch.load(tmp_path / "plain.pt", weights_only=True)["fc.weight"].shape == (10, 512)
    assert "must end in" in run("export-weights", checkpoint, "--output", "x.bin", status=1).stderr
    run("export-weights", checkpoint, "--size", "32", status=2)


@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")  # torch 2.11's own
def test_export_weights_as_onnx(run: Run, trial: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    checkpoint = str(trial / "resnet_tiny.tar")
    shown = run("export-weights", checkpoint, "--output", "encoder.onnx", "--size", "24").stdout
    assert shown == "encoder.onnx\n"
    assert (tmp_path / "encoder.onnx").stat().st_size > 1e6
