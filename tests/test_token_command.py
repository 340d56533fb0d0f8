"""`care-sweep token` and `audit` as an operator types them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from care_sweep.cli import app
from care_sweep.search.catalog import resolve_sweep
from care_sweep.store import Caller, Scope, Store, open_database


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'care.db'}"
    monkeypatch.setenv("CARE_SWEEP_DATABASE_URL", url)
    return url


def _type(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, prog_name="care-sweep")
    assert result.exit_code == status, result.stdout + result.stderr
    return result


def _create(*arguments: str) -> str:
    return str(_type("token", "create", *arguments).stdout.strip())


def test_a_token_is_made_shown_once_listed_and_revoked(url: str) -> None:
    text = _create("alice", "--scope", "submit")
    assert re.fullmatch(r"cs_[A-Za-z0-9_-]{43}", text), "nothing else is printed, for $(...)"
    (listed,) = json.loads(_type("token", "list", "--json").stdout)
    assert (listed["owner"], listed["scope"], listed["revoked_at"]) == ("alice", "submit", None)
    assert listed["expires_at"] - listed["created_at"] == 90 * 86400
    assert text not in _type("token", "list").stdout + json.dumps(listed)

    engine = open_database(url)
    tokens = Store(engine).tokens
    assert tokens.caller(text) == Caller("alice", Scope.SUBMIT, listed["id"])
    assert f"token {listed['id']} is revoked" in _type("token", "revoke", listed["id"]).stdout
    assert tokens.caller(text) is None
    engine.dispose()
    assert "revoked" in _type("token", "list").stdout
    assert "was revoked before" in _type("token", "revoke", listed["id"], status=1).stderr
    assert "`care-sweep token list`" in _type("token", "revoke", "absent", status=1).stderr


@pytest.mark.parametrize(
    ("given", "seconds"), [("45m", 2700.0), ("12h", 43200.0), ("30d", 2592000.0), ("never", None)]
)
def test_a_token_ends_when_it_is_told(url: str, given: str, seconds: float | None) -> None:
    made = json.loads(_create("alice", "--scope", "read", "--expires-in", given, "--json"))
    expires_at = made["expires_at"]
    assert (None if expires_at is None else expires_at - made["created_at"]) == seconds
    assert made["token"].startswith("cs_")


@pytest.mark.parametrize(
    "arguments",
    [
        ["alice"],
        ["alice", "--scope", "root"],
        ["alice", "--scope", "read", "--expires-in", "0d"],
        ["alice", "--scope", "read", "--expires-in", "30"],
        ["alice", "--scope", "read", "--expires-in", "1y"],
    ],
)
def test_what_is_mistyped_makes_nothing(url: str, arguments: list[str]) -> None:
    _type("token", "create", *arguments, status=2)
    assert json.loads(_type("token", "list", "--json").stdout) == []


def test_a_quota_is_kept_and_shown(url: str) -> None:
    quota = ("--max-sweeps", "4", "--max-concurrent-trials", "8", "--max-gpu-hours", "100")
    _create("alice", "--scope", "submit", *quota)
    _create("bob", "--scope", "read")
    (alice, bob) = json.loads(_type("token", "list", "--json").stdout)
    assert alice["quota"] == {"max_sweeps": 4, "max_concurrent_trials": 8, "max_gpu_hours": 100.0}
    assert set(bob["quota"].values()) == {None}
    assert "4 sweeps, 8 trials, 0 of 100 GPU hours" in _type("token", "list").stdout


def test_an_unfit_name_is_told(url: str) -> None:
    said = _type("token", "create", "al ice", "--scope", "read", status=1).stderr
    assert "must begin with a letter or digit" in said


def test_who_did_what_is_shown(url: str) -> None:
    assert "nobody has done anything yet" in _type("audit").stdout
    engine = open_database(url)
    seen = Store(engine).seen_by(Caller("alice", Scope.SUBMIT, "1a2b"))
    sweep = seen.submit(resolve_sweep({"name": "one", "space": "cifar10-mini", "num_trials": 2}))[0].id
    seen.control.cancel(sweep)
    engine.dispose()
    rows = _type("audit").stdout.splitlines()
    assert re.search(rf"Z +alice +1a2b +submit +{sweep} +QUEUED", rows[1])
    assert re.search(rf"Z +alice +1a2b +cancel +{sweep} +CANCELLED", rows[2])
    (last,) = json.loads(_type("audit", "--limit", "1", "--json").stdout)
    assert (last["action"], last["subject"], last["outcome"]) == ("cancel", sweep, "CANCELLED")
