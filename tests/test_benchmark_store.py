"""Do `benchmarks/store.py` and `benchmarks/search.py` say what they measure, and lose nothing on the way?"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _run(name: str, *arguments: str) -> tuple[Any, str]:
    """The report, and what was printed beside it."""
    command = [sys.executable, str(_BENCHMARKS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_the_store_is_measured_on_both_databases() -> None:
    report, table = _run("store.py", "--quick")
    for kind in ("sqlite", "postgresql"):
        found = report[kind]
        assert found["lost"] == 0
        assert [one["clients"] for one in found["submissions"]] == [1, 10]
        assert all(one["a_second"] > 0 and one["refused"] == 0 for one in found["submissions"])
        (pages,) = found["pages"].values()
        assert {"100 trials", "its measurements", "best", "500 events"} <= pages.keys()
        assert all(0 < one["p50_ms"] <= one["p95_ms"] for one in pages.values())
    assert "| submissions, 10 clients |" in table


def test_a_history_is_replayed_and_gone_on_with(tmp_path: Path) -> None:
    arguments = ["--trials", "30", "--parameters", "10", "--steps", "4", "--directory", str(tmp_path)]
    report, _ = _run("search.py", *arguments)
    (case,) = report["cases"]
    assert (case["stored_trials"], case["parameters"]) == (30, 10)
    assert 0 < case["megabytes"]["before"] <= case["megabytes"]["peak"]
    assert set(case["milliseconds"]) == {
        "ask",
        "tell",
        "store a start",
        "store an epoch",
        "begin a trial",
        "hear of an epoch",
    }
    assert list(tmp_path.iterdir()) == []
