"""Which readings of a test split count together, and does a line of the log stay?"""

import json
import os
from pathlib import Path

import pytest

from care_sweep.counted_reads import count_read


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "home" / "log.jsonl"


def test_a_name_or_the_images_make_it_the_same_split(log: Path) -> None:
    assert count_read(log, fingerprint="a1", dataset="folder:x") == 1
    assert count_read(log, fingerprint="a2", dataset="folder:x") == 2  # resized, say
    assert count_read(log, fingerprint="a2", dataset="folder:copy") == 2
    assert count_read(log, fingerprint="a1", dataset="folder:x") == 3
    assert count_read(log, fingerprint="b", dataset="folder:x2") == 1
    assert count_read(log, fingerprint="c", dataset='"é"') == 1
    assert count_read(log, fingerprint="d", dataset='"é"') == 2


def test_a_line_that_was_cut_short_spoils_no_other(log: Path) -> None:
    count_read(log, fingerprint="a", dataset="x")
    log.write_text(log.read_text() + '{"fingerprint": "a", "da')
    assert count_read(log, fingerprint="a", dataset="x") == 3
    assert count_read(log, fingerprint="a", dataset="x") == 4
    first, _, *others = log.read_text().splitlines()
    assert [json.loads(line)["number"] for line in (first, *others)] == [1, 3, 4]


def test_folder_and_name_of_the_log_are_flushed_too(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    count_read(log, fingerprint="a", dataset="x")
    assert flushed == [log.parent.parent, log, log.parent]
