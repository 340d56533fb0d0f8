"""Images in an object store come to a machine once, whole, and only as they were listed."""

import fcntl
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.few_images import cut_few_images
from care_sweep.errors import DatasetError, StorageError
from care_sweep.learn import fetching
from care_sweep.learn.data import load_dataset
from care_sweep.learn.fetching import fetch
from care_sweep.storage import open_storage
from care_sweep.storage.bucket import Bucket


@pytest.fixture
def far(bucket: str) -> Callable[[dict[str, bytes]], str]:
    """A function that puts files below a new prefix; its URI."""

    def put(files: dict[str, bytes]) -> str:
        uri = f"{bucket}/images-{secrets.token_hex(4)}"
        storage = open_storage(uri)
        for name, content in files.items():
            storage.put(name, content)
        return uri

    return put


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were read, in order."""
    seen: list[str] = []
    read = Bucket.read

    def counted(self: Bucket, key: str, *rest: int, version: str | None = None) -> Iterator[bytes]:
        seen.append(key)
        return read(self, key, *rest, version=version)

    monkeypatch.setattr(Bucket, "read", counted)
    return seen


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_in_a_bucket_are_those_of_a_folder(
    far: Callable[[dict[str, bytes]], str], tmp_path: Path
) -> None:
    name = cut_few_images(tmp_path / "few", num_classes=2)
    uri = far(_files(tmp_path / "few"))
    here = load_dataset(name, download_directory=tmp_path)
    fetched = load_dataset(f"parquet:{uri}", download_directory=tmp_path, roots=[], uris=[uri])
    assert fetched.fingerprint == here.fingerprint
    assert fetched.name == f"parquet:{uri}", "the name of the document, not of the cache"


def test_a_second_trial_reads_nothing_and_a_change_is_another_set(
    far: Callable[[dict[str, bytes]], str], requests: list[str], tmp_path: Path
) -> None:
    content = {"cat/1.png": b"1", "cat/2.png": b"", "dog/1.png": b"3" * 5_000_000}
    uri = far(content)
    first = fetch(uri, tmp_path)
    assert _files(first) == content
    assert len(requests) == 3
    assert fetch(uri, tmp_path) == first
    assert len(requests) == 3
    open_storage(uri).put("cat/1.png", b"9", overwrite=True)
    second = fetch(uri, tmp_path)
    assert (_files(second), _files(first)) == (content | {"cat/1.png": b"9"}, content)


def test_what_nobody_used_for_a_week_goes_with_the_next_fetch(
    far: Callable[[dict[str, bytes]], str], tmp_path: Path
) -> None:
    old, used, new = (far({"cat/1.png": content}) for content in (b"1", b"2", b"3"))
    left, kept = fetch(old, tmp_path), fetch(used, tmp_path)
    for path in (left, kept):
        os.utime(path.parent, (0, 0))
    assert fetch(used, tmp_path) == kept
    assert left.exists(), "nothing was fetched yet"
    fetch(new, tmp_path)
    assert (left.parent.exists(), kept.exists()) == (False, True)
    assert not list(tmp_path.glob("*.part"))
    assert _files(fetch(old, tmp_path)) == {"cat/1.png": b"1"}


def test_what_is_half_deleted_is_not_taken_for_whole(
    far: Callable[[dict[str, bytes]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"cat/1.png": b"1", "dog/1.png": b"2"}
    old = far(content)
    left = fetch(old, tmp_path)
    os.utime(left.parent, (0, 0))

    def killed(folder: Path, **_: object) -> None:
        next(folder.rglob("*.png")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching.shutil, "rmtree", killed)
        fetch(far({"cat/1.png": b"3"}), tmp_path)
    assert _files(fetch(old, tmp_path)) == content


def test_one_object_can_be_named(far: Callable[[dict[str, bytes]], str], tmp_path: Path) -> None:
    uri = far({"one.parquet": b"PAR1", "two.parquet": b"other"})
    assert fetch(f"{uri}/one.parquet", tmp_path).read_bytes() == b"PAR1"


def test_what_cannot_be_had_leaves_nothing_behind(
    far: Callable[[dict[str, bytes]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = far({"a": b"1", "b": b"2"})
    with pytest.raises(DatasetError, match=f"there is nothing at {uri}/c"):
        fetch(f"{uri}/c", tmp_path)
    list_ = Bucket.list

    def changed_meanwhile(self: Bucket, prefix: str, *, strict: bool = False) -> Iterator[object]:
        yield from list_(self, prefix, strict=strict)
        open_storage(uri).put("b", b"3", overwrite=True)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "list", changed_meanwhile)
        with pytest.raises(StorageError, match="was replaced while it was read"):
            fetch(uri, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert _files(fetch(uri, tmp_path)) == {"a": b"1", "b": b"3"}


def test_a_name_that_cannot_be_kept_is_said_not_passed_over(
    far: Callable[[dict[str, bytes]], str], tmp_path: Path
) -> None:
    from obstore.store import S3Store

    uri = far({"cat/1.png": b"1"})
    name, _, prefix = uri.removeprefix("s3://").partition("/")
    S3Store(name, prefix=prefix).put("big cat/1.png", b"2")
    with pytest.raises(DatasetError, match=r"holds an object whose name cannot be kept: '.*big cat/1.png'"):
        fetch(uri, tmp_path)


def test_others_wait_while_one_fetches_and_read_what_it_left(
    far: Callable[[dict[str, bytes]], str],
    requests: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    uri = far({"a": b"1"})
    folder = fetch(uri, tmp_path)
    moved = folder.parent.rename(tmp_path / "moved")
    found: list[Path] = []
    with (tmp_path / f"{folder.parent.name}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: found.append(fetch(uri, tmp_path)), daemon=True)
        waiting.start()
        deadline = time.monotonic() + 30
        while "waiting while another process fetches" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        moved.rename(folder.parent)
    waiting.join(30)
    assert (found, requests.count(f"{uri.rpartition('/')[2]}/a")) == ([folder], 1)


def test_a_fetch_that_is_killed_is_not_read_and_begins_anew(
    far: Callable[[dict[str, bytes]], str], tmp_path: Path
) -> None:
    uri = far({"a": b"1", "b": b"2"})
    dying = f"""
import os, pathlib
from care_sweep.learn import fetching
fetch_one = fetching._fetch_one
def die(storage, one, path):
    if one.key.endswith("b"):
        os._exit(9)
    fetch_one(storage, one, path)
fetching._fetch_one, fetching._AT_ONCE = die, 1
fetching.fetch({uri!r}, pathlib.Path({str(tmp_path)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", dying], check=False, env=os.environ)
    assert killed.returncode == 9
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.suffix == ".part"
    assert _files(fetch(uri, tmp_path)) == {"a": b"1", "b": b"2"}
    assert not left.exists()
