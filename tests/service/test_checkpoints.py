"""A checkpoint leaves whole or in part, only if it is the one that was stored, and nothing else leaves."""

import base64
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fabrication import Fabricator, contents
from fastapi.testclient import TestClient

from care_sweep.layout import trial_prefix
from care_sweep.settings import Settings
from care_sweep.spec import CheckpointReference, Measurement, TrialState
from care_sweep.store import Store
from service.app import create_app


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
    key = f"{trial_prefix(best.split('/')[3], 1)}/attempt-1/checkpoint.tar"
    content = bytearray(contents(1))
    content[350_000] ^= 1
    if damage == "remove":
        fabricate.storage.delete([key])
    else:
        damaged = bytes(content) if damage == "flip a bit" else contents(1)[:-1]
        fabricate.storage.put(key, damaged, overwrite=True)
    status, kind = (410, "gone") if damage == "remove" else (500, "checkpoint-damaged")
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = http.get(best, headers=headers)
        assert answer.status_code == status
        assert answer.json()["type"] == f"urn:care-sweep:problem:{kind}"
        assert "trial 1" in answer.json()["detail"]
        assert f"care-sweep download {best.split('/')[3]} --trial" in answer.json()["detail"]
        assert fabricate.storage_uri not in answer.text
    logged = [record.levelno for record in caplog.records if record.name.startswith("service")]
    assert logged == ([] if damage == "remove" else [logging.ERROR] * 2)


@pytest.fixture
def stored_anywhere(
    settings: Settings, store: Store, storage_uri: str
) -> Iterator[tuple[TestClient, Fabricator]]:
    """The service on each kind of storage."""
    app = create_app(replace(settings, storage_uri=storage_uri), store)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, Fabricator(store, storage_uri)


def test_every_storage_is_served_alike(stored_anywhere: tuple[TestClient, Fabricator]) -> None:
    http, fabricate = stored_anywhere
    sweep_id = fabricate.finished()
    best = f"/v1/sweeps/{sweep_id}/checkpoints/best"
    whole = http.get(best)
    assert (whole.status_code, whole.content) == (200, contents(1))
    etag = whole.headers["etag"]
    part = {"Range": "bytes=262143-262145"}
    assert http.get(best, headers=part).content == contents(1)[262143:262146]
    assert http.get(best, headers={**part, "If-Range": etag}).status_code == 206
    assert http.get(best, headers={**part, "If-Range": '"other"'}).content == contents(1)
    assert http.get(best, headers={"If-None-Match": etag}).status_code == 304
    assert http.get(best, headers={"Range": "bytes=700000-"}).status_code == 416
    assert http.get(f"/v1/sweeps/{sweep_id}/trials/2/logs").text == "trial 2 begins\n"
    assert http.get(f"/v1/sweeps/{sweep_id}/trials/2/logs?attempt=2").status_code == 404
    fabricate.storage.delete([f"{trial_prefix(sweep_id, 1)}/attempt-1/checkpoint.tar"])
    assert http.get(best).status_code == 410


def test_no_damage_is_ever_served(stored_anywhere: tuple[TestClient, Fabricator]) -> None:
    """A hundred times: a bit flipped, or the end cut off."""
    http, fabricate = stored_anywhere
    lease, true = fabricate.claimed(), contents(1)[:50_000]
    fabricate.trial(lease, 1, 0.5, true)
    key = f"{trial_prefix(lease.sweep_id, 1)}/attempt-1/checkpoint.tar"
    best = f"/v1/sweeps/{lease.sweep_id}/checkpoints/best"
    source, started = Random(0), time.perf_counter()  # noqa: S311
    for number in range(100):
        damaged = bytearray(true)
        place = source.randrange(len(true))
        if number % 4:
            damaged[place] ^= 1 << source.randrange(8)
        else:
            del damaged[place:]
        fabricate.storage.put(key, bytes(damaged), overwrite=True)
        answer = http.get(best, headers=source.choice([{}, {"Range": "bytes=0-9"}]))
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
    fabricate.storage.put(key, true, overwrite=True)
    assert http.get(best).content == true
    print(f"100 damaged checkpoints in {time.perf_counter() - started:.1f} s")


def test_a_storage_that_does_not_answer_is_a_503(
    settings: Settings,
    store: Store,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sweep_id = Fabricator(store, bucket).finished()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    http = TestClient(create_app(replace(settings, storage_uri=bucket), store), raise_server_exceptions=False)
    for path in ("checkpoints/best", "trials/1/checkpoint", "trials/1/logs"):
        answer = http.get(f"/v1/sweeps/{sweep_id}/{path}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["type"] == "urn:care-sweep:problem:storage-out-of-reach"
        assert "s3://" not in answer.text, "where it lies is for the log"
    assert "s3://sweeps/sweeps/" in caplog.text


def test_a_checkpoint_that_was_not_kept(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    fabricate.trial(lease, 0, 0.3, contents(0))
    lease.forget_checkpoints([0])
    answer = http.get(f"/v1/sweeps/{lease.sweep_id}/trials/0/checkpoint")
    assert answer.status_code == 410
    assert "was not kept" in answer.json()["detail"]


def test_no_checkpoint_yet(http: TestClient, fabricate: Fabricator) -> None:
    lease = fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    for path in ("checkpoints/best", "trials/0/checkpoint"):
        assert http.get(f"/v1/sweeps/{lease.sweep_id}/{path}").status_code == 404
    queued = fabricate.queued().id
    assert "no best checkpoint yet" in http.get(f"/v1/sweeps/{queued}/checkpoints/best").json()["detail"]


@pytest.mark.parametrize(
    "name",
    [
        *("../../../../../secret", "/etc/passwd", "attempt-1/link", "..", "attempt-1", "attempt-1/log.txt"),
        *("attempt-1/state-00001.pt", "attempt-2/checkpoint.tar", "attempt-1/../attempt-1/state-00001.pt"),
    ],
)
def test_nothing_leaves_from_outside(http: TestClient, fabricate: Fabricator, name: str) -> None:
    """Even where a row names it: the names are made by workers."""
    secret = Path(fabricate.storage_uri) / "secret"
    lease = fabricate.claimed()
    folder = Path(fabricate.storage_uri) / trial_prefix(lease.sweep_id, 0) / "attempt-1"
    folder.mkdir(parents=True)
    secret.write_bytes(b"secret")
    (folder / "link").symlink_to(secret)
    for inside in ("log.txt", "state-00001.pt"):
        (folder / inside).write_bytes(b"secret")
    (folder.parent / "attempt-2").mkdir()
    (folder.parent / "attempt-2" / "checkpoint.tar").symlink_to(secret)
    reference = CheckpointReference(name=name, sha256=hashlib.sha256(b"secret").hexdigest(), size_bytes=6)
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    last = Measurement(epoch=1, metrics={}, seconds=1, checkpoint=reference)
    lease.record(0, 1, last, state=TrialState.COMPLETE, value=0.5)
    answer = http.get(f"/v1/sweeps/{lease.sweep_id}/trials/0/checkpoint")
    assert answer.status_code in (404, 410, 500)
    assert b"secret" not in answer.content.replace(b"/secret", b"")
