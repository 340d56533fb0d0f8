"""Settings come from the environment they are given, with everything of a local instance below its home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from care_sweep.errors import InvalidDocument
from care_sweep.settings import Settings


def test_defaults_lie_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = Settings.from_environment({})
    home = Path("/home/someone/.care-sweep")
    assert settings == Settings(
        home=home,
        database_url=f"sqlite:///{home}/care-sweep.db",
        storage_uri=f"{home}/storage",
        data_roots=(home / "data",),
        url="http://127.0.0.1:8484",
        token_path=home / "token",
        ray_address=None,
    )
    assert settings.download_directory == home / "datasets"


def test_each_setting_is_read() -> None:
    settings = Settings.from_environment(
        {
            "CARE_SWEEP_HOME": "/h",
            "CARE_SWEEP_DATABASE_URL": "postgresql://db/care",
            "CARE_SWEEP_STORAGE_URI": "/s",
            "CARE_SWEEP_DATA_ROOTS": "/a:/b:",
            "CARE_SWEEP_URL": "http://gpu:1",
            "RAY_ADDRESS": "10.0.0.1:6379",
            "CARE_SWEEP_KEEP_CHECKPOINTS": "3",
            "CARE_SWEEP_TOKEN_PATH": "/t",
            "CARE_SWEEP_AUTH": "required",
            "CARE_SWEEP_HOSTS": "Sweeps.example, ::1,",
            "CARE_SWEEP_REQUESTS_PER_SECOND": "0.5",
        }
    )
    assert settings == Settings(
        home=Path("/h"),
        database_url="postgresql://db/care",
        storage_uri="/s",
        data_roots=(Path("/a"), Path("/b")),
        url="http://gpu:1",
        token_path=Path("/t"),
        ray_address="10.0.0.1:6379",
        num_checkpoints_kept=3,
        auth="required",
        hosts=("sweeps.example", "::1"),
        requests_per_second=0.5,
    )


@pytest.mark.parametrize("number", ["0", "-1", "none", "3.0", " 3", "1e3", "٣"])
def test_the_best_checkpoint_is_always_kept(number: str) -> None:
    with pytest.raises(InvalidDocument, match="CARE_SWEEP_KEEP_CHECKPOINTS: must be all, or how many"):
        Settings.from_environment({"CARE_SWEEP_KEEP_CHECKPOINTS": number})
    assert Settings.from_environment({"CARE_SWEEP_KEEP_CHECKPOINTS": "all"}).num_checkpoints_kept is None


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("AUTH", "none", "must be required, or auto"),
        ("AUTH", "Required", "must be required, or auto"),
        ("HOSTS", "https://sweeps.example", "names of hosts"),
        ("HOSTS", "sweeps.example sweeps.other", "names of hosts"),
        ("REQUESTS_PER_SECOND", "0", "above 0"),
        ("REQUESTS_PER_SECOND", "-1", "above 0"),
        ("REQUESTS_PER_SECOND", "nan", "above 0"),
    ],
)
def test_what_guards_the_service_is_no_guess(name: str, given: str, words: str) -> None:
    with pytest.raises(InvalidDocument, match=f"CARE_SWEEP_{name}: .*{words}"):
        Settings.from_environment({f"CARE_SWEEP_{name}": given})


@pytest.mark.parametrize("address", ["auto", "local", "head", "head:abc", "ray://head:10001", ":6379", "h:0"])
def test_a_cluster_is_never_guessed(address: str) -> None:
    with pytest.raises(InvalidDocument, match="RAY_ADDRESS: must be the host and port") as refused:
        Settings.from_environment({"RAY_ADDRESS": address})
    assert refused.value.problems[0].value == address


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray-head:6379", "[::1]:6379", "head.ns.svc:1"])
def test_a_cluster_is_taken_as_it_is_named(address: str) -> None:
    assert Settings.from_environment({"RAY_ADDRESS": address}).ray_address == address


def test_an_empty_setting_is_an_absent_one() -> None:
    names = ["DATABASE_URL", "STORAGE_URI", "DATA_ROOTS", "URL", "KEEP_CHECKPOINTS"]
    names += ["TOKEN_PATH", "AUTH", "HOSTS", "REQUESTS_PER_SECOND"]
    empty = {f"CARE_SWEEP_{name}": "" for name in names} | {"RAY_ADDRESS": ""}
    given = Settings.from_environment({"CARE_SWEEP_HOME": "/h", **empty})
    assert given == Settings.from_environment({"CARE_SWEEP_HOME": "/h"})


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = {"CARE_SWEEP_HOME": "h", "CARE_SWEEP_DATA_ROOTS": "a", "CARE_SWEEP_STORAGE_URI": "s"}
    settings = Settings.from_environment(relative)
    assert (settings.home, settings.data_roots, settings.storage_uri) == (
        tmp_path / "h",
        (tmp_path / "a",),
        str(tmp_path / "s"),
    )


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://my.bucket-1/a/B_c/d.e"])
def test_an_object_store_is_taken_as_it_is(uri: str) -> None:
    settings = Settings.from_environment({"CARE_SWEEP_STORAGE_URI": uri})
    assert settings.storage_uri == uri.rstrip("/")


@pytest.mark.parametrize(
    "uri",
    [
        *("gs://bucket/sweeps", "http://host/sweeps", "file:///sweeps", "S3://bucket", "s3://", "s3:///a"),
        *("s3://Bucket/a", "s3://bucket/../a", "s3://bucket/a//b", "s3://bucket/a b", "s3://b", "://"),
    ],
)
def test_another_storage_is_refused_by_name(uri: str) -> None:
    with pytest.raises(InvalidDocument, match="must be a folder or s3://bucket/prefix") as refused:
        Settings.from_environment({"CARE_SWEEP_STORAGE_URI": uri})
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.value) == ("CARE_SWEEP_STORAGE_URI", uri)


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/a", "s3://bucket/a?token=secret"])
def test_a_secret_in_the_storage_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InvalidDocument, match="AWS_ACCESS_KEY_ID") as refused:
        Settings.from_environment({"CARE_SWEEP_STORAGE_URI": uri})
    assert "secret" not in str(refused.value)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = Settings.from_environment({"CARE_SWEEP_STORAGE_URI": "~/sweeps"})
    assert settings.storage_uri == "/home/someone/sweeps"


def test_prefixes_of_object_stores_are_data_roots_too() -> None:
    settings = Settings.from_environment({"CARE_SWEEP_DATA_ROOTS": "/a:s3://images/few/:/b:s3://other"})
    assert (settings.data_roots, settings.data_uris) == (
        (Path("/a"), Path("/b")),
        ("s3://images/few", "s3://other"),
    )
    with pytest.raises(InvalidDocument, match="CARE_SWEEP_DATA_ROOTS"):
        Settings.from_environment({"CARE_SWEEP_DATA_ROOTS": "/a:https://images"})


@pytest.mark.parametrize("module", ["service", "care_sweep.run.runner"])
def test_a_process_says_in_one_line_which_setting_it_cannot_use(module: str, tmp_path: Path) -> None:
    environment = {**os.environ, "CARE_SWEEP_HOME": str(tmp_path), "CARE_SWEEP_MAX_ACTIVE_SWEEPS": "many"}
    ran = subprocess.run(
        [sys.executable, "-m", module], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode > 0
    (line,) = ran.stderr.splitlines()
    assert "CARE_SWEEP_MAX_ACTIVE_SWEEPS: must be how many" in line
