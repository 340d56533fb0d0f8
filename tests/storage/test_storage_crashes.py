"""A writer that is killed leaves nothing, or the whole object."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import shake_128
from pathlib import Path

import pytest

from care_sweep.errors import NotFound, StorageError
from care_sweep.storage import open_storage
from care_sweep.storage.folder import Folder

HERE = Path(__file__).parent


def test_a_writer_that_dies_at_any_line_leaves_nothing_or_all(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "dying.py"), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    for report in json.loads(ran.stdout):
        assert report["num_deaths"] > 20, "it was killed in the middle too"
        assert set(report["left"]) == {"old", "new", "debris"}
        assert report["left"]["debris"] > 0, "what the dead left under temporary names was swept"
        assert report["last"] == "new"
        assert report["beside"] == ["c"]


WRITER = """
import sys
from hashlib import shake_128
from care_sweep.storage import open_storage
storage = open_storage(sys.argv[1])
print("ready", flush=True)
for number in range(1000):
    storage.put(f"a/{number}", shake_128(bytes([number % 256])).digest(2_000_000))
"""


def test_a_writer_that_is_killed_leaves_nothing_or_all(storage_uri: str) -> None:
    for delay in (0.05, 0.15, 0.3):
        uri = f"{storage_uri}/{delay}"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, uri], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        storage = open_storage(uri)
        for found in storage.list("a"):
            content = b"".join(storage.read(found.key))
            number = int(found.key.removeprefix("a/"))
            assert content == shake_128(bytes([number % 256])).digest(2_000_000)


def test_old_temporary_files_are_swept_and_nothing_else(tmp_path: Path) -> None:
    storage = Folder(tmp_path / "storage")
    assert storage.sweep_temporary_files(3600) == 0, "there is no folder yet"
    storage.put("a/b/checkpoint.tar", b"x")
    folder = tmp_path / "storage" / "a" / "b"
    old, young = folder / ".checkpoint.tar.1-ab.part", folder / ".state-00001.pt.2-cd.part"
    others = [folder / ".hidden", folder / "kept.part", folder / "checkpoint.tar"]
    for path in (old, young, *others):
        path.write_bytes(b"x")
        if path != young:
            os.utime(path, (time.time() - 4000, time.time() - 4000))
    assert [found.key for found in storage.list("a")] == ["a/b/checkpoint.tar", "a/b/kept.part"]
    assert storage.sweep_temporary_files(3600) == 1
    assert not old.exists()
    assert all(path.exists() for path in (young, *others))


def test_no_link_leads_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    storage = Folder(tmp_path / "storage")
    storage.put("inside", b"x")
    (tmp_path / "storage" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "storage" / "file").symlink_to(tmp_path / "outside" / "secret")
    (tmp_path / "storage" / "near").symlink_to(tmp_path / "storage" / "inside")
    for key in ("folder/secret", "file", "near"):
        with pytest.raises(NotFound):
            storage.head(key)
        with pytest.raises(NotFound):
            list(storage.read(key))
    assert list(storage.list("file")) == list(storage.list("folder")) == []
    with pytest.raises(NotFound):
        storage.put("folder/new", b"x")
    storage.delete(["file"])
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    storage.put("a/b", b"x")
    for key in ("a", "a/b/c"):
        with pytest.raises(StorageError, match="in the way"):
            storage.put(key, b"y", overwrite=True)


def test_a_disk_that_is_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("care_sweep.storage.durable.os.fsync", fail)
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"a/b: No space left on device"):
        Folder(tmp_path).put("a/b", b"x")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "storage").symlink_to(tmp_path / "disk")
    storage = Folder(tmp_path / "storage")
    storage.put("a/b", b"x")
    assert b"".join(storage.read("a/b")) == b"x"
