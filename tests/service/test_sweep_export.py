"""A sweep as one file: the same rows in each format, equal bytes for equal rows, and nothing left behind."""

import base64
import csv
import errno
import hashlib
import io
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import optuna
import pyarrow as pa
import pytest
from conftest import ServiceProcess, opened
from fabrication import Fabricator
from fastapi.testclient import TestClient
from pyarrow import parquet
from sqlalchemy import insert

from care_sweep.spec import Measurement, SweepState, TrialConfig, TrialState
from care_sweep.store import Lease, observe_transactions
from care_sweep.store.database import writing
from care_sweep.store.schema import measurements, trials
from service import export, export_rows
from service.tabular import Table, write_csv

START = 1_800_000_000.25
EVERYTHING = [("csv", "trials"), ("csv", "measurements"), ("parquet", "trials"), ("parquet", "measurements")]


@pytest.fixture
def varied(fabricate: Fabricator) -> str:
    """A sweep with a trial of each kind, and two COMPLETE ones."""
    clock = iter(range(10_000))
    fabricate.store.clock = lambda: START + next(clock)
    lease = fabricate.claimed(num_trials=8, seed=7)
    lease._clock = fabricate.store.clock
    fabricate.trial(lease, 0, 0.25)
    fabricate.trial(lease, 1, 0.5)
    for number in range(2, 8):
        lease.start_attempt(number, 1, {"temperature": 0.1, "equivariance_weight": 1.0}, is_baseline=False)
    for number in (2, 3, 4, 7):
        _measure(lease, number, 1)
    lease.record(2, 1, _measured(2), state=TrialState.PRUNED)
    lease.finish_trial(3, TrialState.INFEASIBLE, reason="collapsed")
    lease.interrupt_trial(4, reason="worker lost")
    lease.start_attempt(4, 2, {"temperature": 0.1, "equivariance_weight": 1.0}, is_baseline=False)
    lease.finish_trial(5, TrialState.FAILED, reason="=1+1", message="a formula")
    lease.finish_trial(6, TrialState.CANCELLED, reason="stopped")
    lease.interrupt_trial(7, reason="paused")
    return lease.sweep_id


def _measured(epoch: int) -> Measurement:
    metrics = {"validation_knn_accuracy": 0.1 * epoch, "a_loss": -1.5}
    return Measurement(epoch=epoch, metrics=metrics, seconds=0.1)


def _measure(lease: Lease, number: int, epoch: int) -> None:
    lease.record(number, 1, _measured(epoch))


def _exported(http: TestClient, sweep_id: str, file_format: str, rows: str | None = None) -> Any:
    answer = http.get(_where(sweep_id), params={"format": file_format, **({"rows": rows} if rows else {})})
    assert answer.status_code == 200, answer.text
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["x-content-type-options"] == "nosniff"
    return answer


def _where(sweep_id: str) -> str:
    return f"/v1/sweeps/{sweep_id}/export"


def _csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _parquet(content: bytes) -> pa.Table:
    return parquet.read_table(io.BytesIO(content))


# --- what is in it ---


def test_trials_as_csv(http: TestClient, varied: str) -> None:
    answer = http.get(_where(varied))
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{varied}-trials.csv"'
    assert answer.content == _exported(http, varied, "csv", "trials").content
    rows = _csv_rows(answer.text)
    told = http.get(f"/v1/sweeps/{varied}/trials").json()["trials"]
    assert [row["number"] for row in rows] == [str(number) for number in range(8)]
    assert [row["state"] for row in rows] == [trial["state"] for trial in told]
    baseline, best, pruned, infeasible, running, failed, _, waiting = rows
    assert {key: cell for key, cell in best.items() if not key.startswith("config_")} == {
        "number": "1",
        "state": "COMPLETE",
        "reason": "",
        "value": "0.5",
        "standard_error": "0.025",
        "is_baseline": "false",
        "attempts": "1",
        "last_epoch": "2",
        "trained_seconds": "3.0",
        "started_at": told[1]["started_at"],
        "finished_at": told[1]["finished_at"],
    }
    config = TrialConfig(dataset="cifar10-mini", epochs=2, temperature=0.5, equivariance_weight=0.1, seed=7)
    assert {key.removeprefix("config_"): cell for key, cell in best.items() if key.startswith("config_")} == {
        key: "" if value is None else str(value) for key, value in config.model_dump().items()
    }
    assert (baseline["is_baseline"], baseline["config_equivariance_weight"]) == ("true", "0.0")
    assert (pruned["value"], pruned["standard_error"], pruned["trained_seconds"]) == ("", "", "0.2")
    assert infeasible["reason"] == "collapsed"
    assert (running["attempts"], running["last_epoch"], running["finished_at"]) == ("2", "1", "")
    assert (failed["trained_seconds"], failed["reason"]) == ("0.0", "'=1+1")
    assert waiting["reason"] == "paused"


def test_measurements_as_csv(http: TestClient, varied: str) -> None:
    answer = _exported(http, varied, "csv", "measurements")
    assert answer.headers["content-disposition"] == f'attachment; filename="{varied}-measurements.csv"'
    assert answer.text.splitlines()[0].split(",") == [
        *("number", "epoch", "attempt", "seconds", "recorded_at", "metric_a_loss"),
        *("metric_num_validation_images", "metric_train_loss", "metric_validation_knn_accuracy"),
    ]
    rows = _csv_rows(answer.text)
    expected = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1), (7, 1)]
    assert [(int(row["number"]), int(row["epoch"])) for row in rows] == expected
    assert (rows[0]["metric_a_loss"], rows[0]["metric_train_loss"]) == ("", "1.0")
    assert (rows[5]["metric_a_loss"], rows[5]["metric_train_loss"]) == ("-1.5", ""), "a number stays one"
    measured = http.get(f"/v1/sweeps/{varied}/trials/2/measurements").json()["measurements"]
    assert (rows[5]["recorded_at"], float(rows[5]["seconds"])) == (measured[1]["recorded_at"], 0.1)


@pytest.mark.parametrize("rows", ["trials", "measurements"])
def test_parquet_has_the_cells_of_csv_with_their_types(http: TestClient, varied: str, rows: str) -> None:
    answer = _exported(http, varied, "parquet", rows)
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert answer.headers["content-disposition"] == f'attachment; filename="{varied}-{rows}.parquet"'
    table = _parquet(answer.content)
    cells = zip(*table.to_pydict().values(), strict=True)
    with tempfile.TemporaryFile() as file:
        write_csv(Table(dict.fromkeys(table.column_names, str), cells), file)
        file.seek(0)
        assert file.read() == _exported(http, varied, "csv", rows).content
    types = {field.name: str(field.type) for field in table.schema}
    if rows == "trials":
        kinds = ("int64", "string", "double", "bool", "timestamp[us, tz=UTC]", "double", "int64", "string")
        names = ("number", "reason", "value", "is_baseline", "finished_at", "config_temperature")
        assert [types[name] for name in (*names, "config_resize", "config_encoder")] == list(kinds)
    else:
        assert [types[name] for name in ("epoch", "recorded_at", "metric_a_loss")] == [
            *("int64", "timestamp[us, tz=UTC]", "double")
        ]
        assert table["recorded_at"][0].as_py() == datetime.fromtimestamp(START + 3, UTC)


def test_an_optuna_study(http: TestClient, varied: str, tmp_path: Path) -> None:
    answer = _exported(http, varied, "optuna")
    assert answer.headers["content-type"] == "application/vnd.sqlite3"
    assert answer.headers["content-disposition"] == f'attachment; filename="{varied}-optuna.db"'
    (tmp_path / "study.db").write_bytes(answer.content)
    study = optuna.load_study(study_name=varied, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == [
        *("COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "RUNNING", "FAIL", "FAIL", "RUNNING")
    ]
    baseline, best, pruned, infeasible, running, *_ = study.trials
    assert (baseline.params, baseline.user_attrs["is_baseline"]) == ({"temperature": 0.5}, True)
    assert (study.best_trial.number, best.value, best.params["equivariance_weight"]) == (1, 0.5, 0.1)
    assert pruned.intermediate_values == {1: 0.1, 2: 0.2}
    assert (infeasible.value, infeasible.constraints) == (0.1, {"feasible": 1.0})
    assert running.intermediate_values == {1: 0.1}
    assert study.user_attrs["spec"]["seed"] == running.user_attrs["seed"] == 7


def test_of_a_sweep_that_has_not_begun(http: TestClient, fabricate: Fabricator) -> None:
    sweep_id = fabricate.queued().id
    for rows in ("trials", "measurements"):
        assert len(_exported(http, sweep_id, "csv", rows).text.splitlines()) == 1
        assert _parquet(_exported(http, sweep_id, "parquet", rows).content).num_rows == 0
    assert _exported(http, sweep_id, "optuna").content.startswith(b"SQLite format 3\0")


# --- how it is written ---


def test_text_that_would_be_a_formula() -> None:
    formulas = ["=1+1", "+1", "-1", "@sum", "\tx", "\rx"]
    harmless: Sequence[Any] = ["a=1", 'say "=", \r\nthen', -1.5, -2, None, True]
    columns = ["=header", *map(str, range(11))]
    with tempfile.TemporaryFile() as file:
        write_csv(Table(dict.fromkeys(columns, str), [[*formulas, *harmless]]), file)
        file.seek(0)
        text = file.read().decode()
    header, row = csv.reader(io.StringIO(text, newline=""))
    assert header[0] == "'=header"
    assert row[:6] == [f"'{text}" for text in formulas]
    assert row[6:] == ["a=1", 'say "=", \r\nthen', "-1.5", "-2", "", "true"]


def test_pages_leave_no_trace(http: TestClient, varied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [_exported(http, varied, *kind).content for kind in EVERYTHING[:2]]
    monkeypatch.setattr(export_rows, "_PAGE_TRIALS", 3)
    monkeypatch.setattr(export_rows, "_PAGE_MEASUREMENTS", 3)
    monkeypatch.setattr("service.tabular._BATCH_ROWS", 2)
    assert [_exported(http, varied, *kind).content for kind in EVERYTHING[:2]] == whole
    for kind, content in zip(EVERYTHING[2:], whole, strict=True):
        assert _parquet(_exported(http, varied, *kind).content).num_rows == content.count(b"\n") - 1


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


@pytest.mark.parametrize("file_format", ["csv", "parquet", "optuna"])
def test_no_temporary_file_stays(http: TestClient, varied: str, scratch: Path, file_format: str) -> None:
    _exported(http, varied, file_format)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("trouble", ["a full disk", "a bug"])
def test_what_cannot_be_written_leaves_nothing(
    http: TestClient, varied: str, scratch: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        assert any(scratch.iterdir())
        raise OSError(errno.ENOSPC, "No space left on device") if trouble == "a full disk" else KeyError()

    monkeypatch.setattr(export, "write_csv", fail)
    answer = TestClient(http.app, raise_server_exceptions=False).get(_where(varied))
    assert answer.status_code == (507 if trouble == "a full disk" else 500)
    assert list(scratch.iterdir()) == []


def test_refusals(http: TestClient, varied: str) -> None:
    for query, pointer in (
        ("format=xml", "/query/format"),
        ("rows=epochs", "/query/rows"),
        ("format=optuna&rows=trials", "/query/rows"),
        ("fromat=csv", "/query/fromat"),
    ):
        answer = http.get(f"{_where(varied)}?{query}")
        assert answer.status_code == 422
        assert [place["pointer"] for place in answer.json()["problems"]] == [pointer]
    for file_format in ("csv", "optuna"):
        assert http.get(_where("nowhere"), params={"format": file_format}).status_code == 404


# --- how much it takes ---


def test_a_study_takes_as_many_transactions_however_many_trials(
    http: TestClient, fabricate: Fabricator
) -> None:
    kinds: list[str] = []
    observe_transactions(fabricate.store.engine, lambda kind, _: kinds.append(kind))

    def num_transactions(num_trials: int) -> int:
        sweep_id = fabricate.finished([0.1] * num_trials)
        kinds.clear()
        _exported(http, sweep_id, "optuna")
        return len(kinds)

    assert num_transactions(2) == num_transactions(12)


@pytest.mark.slow
def test_a_large_sweep_takes_little_memory(own_process: ServiceProcess) -> None:
    """100,000 measurements, of which all at once would be some 200 MB of rows."""
    num_trials, num_epochs = 1000, 100
    with opened(own_process.settings) as store:
        fabricate = Fabricator(store, own_process.settings.storage_uri)
        lease = fabricate.claimed(
            num_trials=num_trials, space__fixed={"dataset": "cifar10-mini", "epochs": num_epochs}
        )
        metrics = {f"metric {number}": number / 7 for number in range(9)} | {"validation_knn_accuracy": 0.5}
        trial = {
            **{"sweep_id": lease.sweep_id, "parameters": {"temperature": 0.5, "equivariance_weight": 1.0}},
            **{
                "is_baseline": False,
                "state": "COMPLETE",
                "value": 0.5,
                "attempt": 1,
                "last_epoch": num_epochs,
            },
            **{"started_at": START, "finished_at": START},
        }
        row = {
            "sweep_id": lease.sweep_id,
            "attempt": 1,
            "metrics": metrics,
            "seconds": 0.1,
            "recorded_at": START,
        }
        with writing(store.engine) as connection:
            connection.execute(insert(trials), [{**trial, "number": number} for number in range(num_trials)])
            for number in range(num_trials):
                rows = [{**row, "trial_number": number, "epoch": epoch + 1} for epoch in range(num_epochs)]
                connection.execute(insert(measurements), rows)
        lease.finish_sweep(SweepState.SUCCEEDED)
        sizes = {}
        with httpx2.Client(base_url=own_process.url, timeout=300) as http:
            http.get(_where(lease.sweep_id), params={"format": "parquet"})  # which loads pyarrow
            before = own_process.most_resident_bytes
            for kind in ({"format": "csv"}, {"format": "parquet"}, {"format": "optuna"}):
                if kind["format"] != "optuna":
                    kind["rows"] = "measurements"
                with http.stream("GET", _where(lease.sweep_id), params=kind) as answer:
                    sizes[json.dumps(kind)] = sum(len(chunk) for chunk in answer.iter_bytes())
        used = own_process.most_resident_bytes - before
    print(f"{used / 1e6:.0f} MB for {sizes}")
    assert used < 60e6
