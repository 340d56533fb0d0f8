"""A checkpoint leaves whole or in part, only if it is the one that was stored, and nothing else leaves."""

import base64
import hashlib
import logging
from pathlib import Path

import pytest
from fabrication import Fabricator, contents
from fastapi.testclient import TestClient

from care_sweep.spec import CheckpointReference, Measurement, TrialState


@pytest.fixture
def best(fabricate: Fabricator) -> str:
    """Where the best checkpoint of a finished sweep is, which is trial 1's."""
    return f"/v1/sweeps/{fabricate.finished()}/checkpoints/best"


def test_whole(http: TestClient, best: str) -> None:
    answer = http.get(best)
    assert answer.content == contents(1)
    digest = hashlib.sha256(answer.content)
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].endswith('-trial-00001.tar"')
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert http.get(best.replace("checkpoints/best", "trials/3/checkpoint")).content == contents(3)


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=699990-", 699990, 700000),
        ("bytes=-5", 699995, 700000),
        ("bytes=-9000000", 0, 700000),
        ("bytes=100-9999999", 100, 700000),
        ("bytes=262143-262145", 262143, 262146),
    ],
)
def test_range(http: TestClient, best: str, asked: str, first: int, stop: int) -> None:
    answer = http.get(best, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == contents(1)[first:stop]
    assert answer.headers["content-range"] == f"bytes {first}-{stop - 1}/700000"


@pytest.mark.parametrize("asked", ["bytes=700000-", "bytes=800000-900000", "bytes=-0"])
def test_range_outside_the_file(http: TestClient, best: str, asked: str) -> None:
    answer = http.get(best, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-range"] == "bytes */700000"
    assert "699999" in answer.json()["detail"]


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", ""])
def test_a_range_that_may_be_ignored(http: TestClient, best: str, asked: str) -> None:
    answer = http.get(best, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, contents(1))


def test_conditions(http: TestClient, best: str) -> None:
    etag = http.get(best).headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = http.get(best, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert http.get(best, headers={"If-None-Match": '"other"'}).status_code == 200
    part = {"Range": "bytes=0-1"}
    assert http.get(best, headers={**part, "If-Range": etag}).status_code == 206
    assert http.get(best, headers={**part, "If-Range": '"other"'}).content == contents(1)


@pytest.mark.parametrize("damage", ["flip a bit", "cut", "remove"])
def test_damage_is_not_served(
    http: TestClient, fabricate: Fabricator, best: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert http.get(best).status_code == 200  # verified once, and yet
    path = fabricate.directory(best.split("/")[3], 1) / "attempt-1" / "checkpoint.tar"
    content = bytearray(path.read_bytes())
    content[350_000] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip a bit" else content[:-1])
    status, kind = (410, "gone") if damage == "remove" else (500, "checkpoint-damaged")
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = http.get(best, headers=headers)
        assert answer.status_code == status
        assert answer.json()["type"] == f"urn:care-sweep:problem:{kind}"
        assert "trial 1" in answer.json()["detail"]
        assert f"care-sweep download {best.split('/')[3]} --trial" in answer.json()["detail"]
        assert str(fabricate.storage) not in answer.text
    logged = [record.levelno for record in caplog.records if record.name.startswith("service")]
    assert logged == ([] if damage == "remove" else [logging.ERROR] * 2)


def test_no_checkpoint_yet(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    fabricate.trial(lease, 0, 0.3)
    for path in ("checkpoints/best", "trials/0/checkpoint"):
        assert http.get(f"/v1/sweeps/{lease.sweep_id}/{path}").status_code == 404
    queued = fabricate.queued().id
    assert "no best checkpoint yet" in http.get(f"/v1/sweeps/{queued}/checkpoints/best").json()["detail"]


@pytest.mark.parametrize(
    "name", ["../../../../../secret", "/etc/passwd", "attempt-1/link", "..", "attempt-1"]
)
def test_nothing_leaves_from_outside(http: TestClient, fabricate: Fabricator, name: str) -> None:
    """Even where a row names it: the names are made by workers."""
    secret = fabricate.storage / "secret"
    lease = fabricate.claimed()
    folder: Path = fabricate.directory(lease.sweep_id, 0) / "attempt-1"
    folder.mkdir(parents=True)
    secret.write_bytes(b"secret")
    (folder / "link").symlink_to(secret)
    reference = CheckpointReference(name=name, sha256=hashlib.sha256(b"secret").hexdigest(), size_bytes=6)
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    last = Measurement(epoch=1, metrics={}, seconds=1, checkpoint=reference)
    lease.record(0, 1, last, state=TrialState.COMPLETE, value=0.5)
    answer = http.get(f"/v1/sweeps/{lease.sweep_id}/trials/0/checkpoint")
    assert answer.status_code in (404, 410, 500)
    assert b"secret" not in answer.content.replace(b"/secret", b"")
