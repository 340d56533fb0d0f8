"""The command line against a real service: what it prints, its JSON, its exit status, its one-line errors."""

import json
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conftest import Run, ServiceProcess, top_modules
from fabrication import SPACE, Fabricator, contents, document

from care_sweep.spec import SweepState


def _write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_help_is_light() -> None:
    heavy = {"torch", "ray", "sqlalchemy", "optuna", "fastapi", "numpy", "pyarrow", "service"}
    assert not top_modules("import care_sweep.cli") & heavy


def test_usage(run: Run) -> None:
    commands = ["demo", "serve", "submit", "list", "show", "watch", "best", "download"]
    commands += ["cancel", "export", "logs", "train", "spaces", "report", "views", "embed", "export-weights"]
    shown = run("--help").stdout
    for command in commands:
        assert command in shown
        described = run(command, "--help").stdout
        assert "Usage: care-sweep " + command in described
        assert "--json" in described
    run("nonsense", status=2)
    run("best", status=2)
    run("best", "x", "-k", "0", status=2)
    run("train", "--space", "care-cifar10", "--set", "epochs", status=2)
    run("train", "--space", "care-cifar10", "--resume", status=2)
    run("train", status=2)
    run("train", "--space", "care-cifar10", "--config", __file__, status=2)


def test_submit_list_show_cancel(run: Run, tmp_path: Path) -> None:
    file = _write(tmp_path / "sweep.json", document(name="by hand"))
    printed = run("submit", file, "--num-trials", "7", "--seed", "3", "--cpus-per-trial", "2").stdout
    sweep_id = printed.split()[1]
    assert printed == f"sweep {sweep_id} is QUEUED\n"
    sweep = json.loads(run("show", sweep_id, "--json").stdout)
    assert (sweep["name"], sweep["num_trials"], sweep["spec"]["seed"]) == ("by hand", 7, 3)
    assert sweep["spec"]["resources"] == {"cpus_per_trial": 2, "gpus_per_trial": "auto"}
    assert sweep["trials"] == []
    assert "by hand" in run("show", sweep_id).stdout
    assert sweep_id in run("list").stdout
    assert json.loads(run("list", "--json", "--limit", "1").stdout)[0]["id"] == sweep_id
    assert run("cancel", sweep_id).stdout == f"sweep {sweep_id} is CANCELLED\n"
    assert "already ended as CANCELLED" in run("cancel", sweep_id, status=1).stderr


def test_submit_a_space(run: Run, tmp_path: Path) -> None:
    file = _write(tmp_path / "space.yaml", SPACE)
    sweep = json.loads(run("submit", file, "--json", "--name", "named").stdout)
    assert (sweep["name"], sweep["num_trials"], sweep["space"]) == ("named", 20, "two-knobs")
    resolved = json.loads(
        run("submit", file, "--validate-only", "--metric", "validation_knn_accuracy").stdout
    )
    assert resolved["spec"]["name"] == "two-knobs"


def test_a_sweep_without_a_number_of_trials(run: Run, tmp_path: Path) -> None:
    content = document()
    del content["num_trials"]
    file = _write(tmp_path / "sweep.yaml", content)
    limits = ["--max-seconds", "60", "--max-gpu-hours", "2"]
    spec = json.loads(run("submit", file, "--validate-only", *limits).stdout)["spec"]
    assert spec["num_trials"] == 20
    assert spec["budget"] == {"max_seconds": 60, "max_gpu_hours": 2}


def test_one_mistyped_key_makes_no_other_document_of_a_file(run: Run, tmp_path: Path) -> None:
    space = {key.replace("parameters", "paramters"): value for key, value in SPACE.items()}
    sweep = {key.replace("space", "spacs"): value for key, value in document().items()}
    for content, place in (
        (space, "/space/paramters: unknown; did you mean 'parameters'?"),
        (sweep, "/spacs: unknown; did you mean 'space'?"),
        ({**SPACE, "fixd": {}}, "/space/fixd: unknown; did you mean 'fixed'?"),
    ):
        assert place in run("submit", _write(tmp_path / "file.yaml", content), status=1).stderr


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"care-sweep {version('care-sweep')}\n"


def test_options_beside_what_is_no_mapping(run: Run, tmp_path: Path) -> None:
    """A key of the file that cannot hold the option is told, with its place."""
    keys = {"resources": ["--cpus-per-trial", "1"], "budget": ["--max-seconds", "5"]}
    for key, options in keys.items():
        for value in (5, "all", [1]):
            file = _write(tmp_path / "sweep.json", document(**{key: value}))
            assert f"/{key}: must be a mapping" in run("submit", file, *options, status=1).stderr
        file = _write(tmp_path / "sweep.json", document(**{key: None}))
        resolved = json.loads(run("submit", file, *options, "--validate-only").stdout)
        assert resolved["spec"][key][options[0].strip("-").replace("-", "_")] == int(options[1])
    for content in ([1, 2], "words", 3, None):
        file = _write(tmp_path / "config.json", content)
        assert "must be a mapping with keys of dataset" in run("train", "--config", file, status=1).stderr


def test_errors_are_one_message(run: Run, tmp_path: Path) -> None:
    assert run("show", "nowhere", status=1).stderr == "error: there is no sweep 'nowhere'\n"
    told = json.loads(run("show", "nowhere", "--json", status=1).stderr)
    assert (told["status"], told["detail"]) == (404, "there is no sweep 'nowhere'")
    file = _write(tmp_path / "bad.json", document(num_trials=0))
    assert "/num_trials" in run("submit", file, status=1).stderr
    assert (
        json.loads(run("submit", file, "--json", status=1).stderr)["problems"][0]["pointer"] == "/num_trials"
    )
    assert "unknown" in run("submit", "cifar-nought", status=1).stderr
    said = run("submit", "nowhere.yaml", status=1).stderr
    assert said.startswith("error: cannot read nowhere.yaml: No such file or directory; ")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "line 1" in run("submit", "broken.yaml", status=1).stderr
    assert "care-sweep serve" in run("list", "--url", "http://127.0.0.1:1", status=1).stderr
    assert "unknown" in run("spaces", "nowhere", status=1).stderr
    (tmp_path / "words.yaml").write_text("just words")
    run("train", "--space", "words.yaml", status=1)


def test_a_finished_sweep(run: Run, live_fabricate: Fabricator, tmp_path: Path) -> None:
    sweep = live_fabricate.finished()
    shown = run("show", sweep).stdout
    assert "SUCCEEDED" in shown and "4 COMPLETE" in shown and "baseline" in shown
    best = run("best", sweep, "-k", "2").stdout
    assert "0.5000 ± 0.0250" in best
    assert "trial 1 - baseline 0: +0.2000" in best
    assert "evidence: 4 COMPLETE" in best
    assert json.loads(run("best", sweep, "--json").stdout)["configurations"][0]["number"] == 1
    assert run("logs", sweep, "2").stdout == "trial 2 begins\n"
    assert json.loads(run("logs", sweep, "2", "--json").stdout)["text"] == "trial 2 begins\n"
    assert run("download", sweep, "best.tar").stdout == "best.tar\n"
    assert (tmp_path / "best.tar").read_bytes() == contents(1)
    told = json.loads(run("download", sweep, "--trial", "2", "--json").stdout)
    assert (tmp_path / told["path"]).read_bytes() == contents(2)
    assert "no trial 9" in run("download", sweep, "--trial", "9", status=1).stderr
    watched = run("watch", sweep).stdout
    assert "trial 1 COMPLETE 0.5000 after 2 epochs; 2 of 4 trials, best 0.5000 (trial 1)" in watched
    assert "sweep SUCCEEDED" in watched
    events = [json.loads(line) for line in run("watch", sweep, "--json").stdout.splitlines()]
    assert events[-1]["data"]["state"] == "SUCCEEDED"


def test_export(run: Run, live_fabricate: Fabricator, tmp_path: Path) -> None:
    sweep = live_fabricate.finished()
    assert run("export", sweep).stdout == f"{sweep}-trials.csv\n"
    rows = (tmp_path / f"{sweep}-trials.csv").read_bytes()
    assert rows.count(b"COMPLETE") == 4
    told = json.loads(run("export", sweep, "--format", "optuna", "--json").stdout)
    assert told == {
        "path": f"{sweep}-optuna.db",
        "size_bytes": (tmp_path / f"{sweep}-optuna.db").stat().st_size,
    }
    (tmp_path / "folder").mkdir()
    arguments = ["export", sweep, "--format", "parquet", "--rows", "measurements", "--output", "folder"]
    assert run(*arguments).stdout == f"folder/{sweep}-measurements.parquet\n"
    for file in ("mine.csv", f"{sweep}-trials.csv"):
        (tmp_path / file).write_text("mine")
        said = run("export", sweep, "--output", file, status=1).stderr
        assert said.startswith(f"error: {file} is there already: ")
        assert "--overwrite" in said
        assert (tmp_path / file).read_text() == "mine"
        run("export", sweep, "--output", file, "--overwrite")
        assert (tmp_path / file).read_bytes() == rows
    run("export", sweep, "--format", "xml", status=2)
    run("export", sweep, "--rows", "epochs", status=2)
    assert (
        "/query/rows"
        in run("export", sweep, "--format", "optuna", "--rows", "trials", "--output", "x", status=1).stderr
    )
    assert "nowhere" in run("export", "nowhere", status=1).stderr
    said = run("export", sweep, "--output", "nowhere/x.csv", status=1).stderr
    assert said == "error: export stopped at nowhere/x.csv: No such file or directory\n"
    assert not (tmp_path / "x").exists()


def test_a_log_cannot_steer_the_terminal(run: Run, live_fabricate: Fabricator) -> None:
    sweep, text = live_fabricate.finished(), "\ta\x1b[2Jb\rc\x07d\x9b31m\u202eé\x7f\x00\n"
    live_fabricate.log(sweep, 2, text)
    shown = "\ta\\x1b[2Jb\\rc\\x07d\\x9b31m\\u202eé\\x7f\\x00\n"
    assert run("logs", sweep, "2").stdout == shown
    assert run("logs", sweep, "2", "--follow").stdout == shown
    for more in ([], ["--follow"]):
        answer = run("logs", sweep, "2", "--json", *more).stdout
        assert json.loads(answer) == {"sweep_id": sweep, "number": 2, "text": text}
        assert not set(answer) & set("\x1b\r\x07\x9b\u202e\x7f\x00")


def test_follow_a_log(run: Run, live_fabricate: Fabricator) -> None:
    lease = live_fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    live_fabricate.log(lease.sweep_id, 0, "begins\n")

    def end() -> None:
        live_fabricate.log(lease.sweep_id, 0, "begins\nends\n")
        lease.finish_sweep(SweepState.CANCELLED)

    ending = threading.Timer(2.0, end)
    ending.start()
    lines = run("logs", lease.sweep_id, "0", "--follow", "--json").stdout.splitlines()
    ending.join()
    assert "".join(json.loads(line)["text"] for line in lines) == "begins\nends\n"
    assert run("logs", lease.sweep_id, "0", "--attempt", "1", "--follow").stdout == "begins\nends\n"
    assert "no attempt 2" in run("logs", lease.sweep_id, "0", "--attempt", "2", "--follow", status=1).stderr


def test_an_interrupted_log_ends_cleanly(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    lease = live_fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    live_fabricate.log(lease.sweep_id, 0, "begins\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "care_sweep.cli", "logs", lease.sweep_id, "0", "--follow", "--url", live.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_a_download_to_nowhere_names_what_was_asked_for(run: Run, live_fabricate: Fabricator) -> None:
    said = run("download", live_fabricate.finished(), "nowhere/best.tar", status=1).stderr
    assert said == "error: download stopped at nowhere/best.tar: No such file or directory\n"


def test_resuming_needs_a_state(run: Run, tmp_path: Path) -> None:
    said = run("train", "--space", "cifar10-mini", "--resume", "--output", "empty", status=1).stderr
    assert said == "error: empty holds no training state to go on from; leave out --resume\n"
    assert not (tmp_path / "empty").exists()


def test_watching_a_sweep_that_fails(run: Run, live_fabricate: Fabricator) -> None:
    lease = live_fabricate.claimed()
    lease.finish_sweep(SweepState.FAILED, reason="driver", message="it was \x1b[2Jnot to be")
    assert r"sweep FAILED (driver: it was \x1b[2Jnot to be)" in run("watch", lease.sweep_id, status=1).stdout
    assert r"it was \x1b[2Jnot to be" in run("show", lease.sweep_id).stdout
    run("watch", lease.sweep_id, "--json", status=1)


def test_submit_and_watch(run: Run, live_fabricate: Fabricator, tmp_path: Path) -> None:
    def drive() -> None:
        while True:
            for record in live_fabricate.store.sweeps(states=[SweepState.QUEUED]).items:
                if record.name == "watched" and (lease := live_fabricate.store.claim(record, "a test")):
                    live_fabricate.trial(lease, 0, 0.3)
                    lease.finish_sweep(SweepState.SUCCEEDED)
                    return
            time.sleep(0.05)

    driver = threading.Thread(target=drive)
    driver.start()
    file = _write(tmp_path / "sweep.json", document(name="watched"))
    lines = run("submit", file, "--watch", "--json").stdout.splitlines()
    driver.join()
    assert json.loads(lines[0])["name"] == "watched"
    assert json.loads(lines[-1])["data"]["state"] == "SUCCEEDED"


def test_an_interrupted_watch_leaves_the_sweep(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    sweep = live_fabricate.claimed().sweep_id
    process = subprocess.Popen(
        [sys.executable, "-m", "care_sweep.cli", "watch", sweep, "--url", live.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "QUEUED" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"sweep {sweep} goes on" in said
    assert "Traceback" not in said
    assert live_fabricate.store.sweep(sweep).state is SweepState.RUNNING


def test_spaces_need_no_service(run: Run) -> None:
    names = run("spaces", url="http://127.0.0.1:1").stdout.split()
    assert json.loads(run("spaces", "--json").stdout) == names
    shown = run("spaces", names[0]).stdout
    assert "equivariance_weight" in shown and "baseline" in shown
    assert json.loads(run("spaces", names[0], "--json").stdout)["name"] == names[0]
