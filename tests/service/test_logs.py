"""Logs while they are written: nothing is missed, nothing comes twice, and a stream ends with its attempt."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2
import pytest
from conftest import ServiceProcess, opened
from fabrication import Fabricator
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from care_sweep.errors import StorageError
from care_sweep.settings import Settings
from care_sweep.spec import SweepState, TrialState
from care_sweep.storage.folder import Folder
from care_sweep.store import Lease, Store
from service.app import create_app

LINES = ["begins\n", "épo", "que 1\n", "ends\n"]


@contextmanager
def _meanwhile(store: Store, *steps: Callable[[], Any]) -> Iterator[None]:
    """Run these, one after the other, once a follower in the block has looked and begun to look again."""
    looks, has_begun = itertools.count(1), threading.Event()
    attempts = store.attempts

    def counted(sweep_id: str, number: int) -> Any:
        if next(looks) == 2:
            has_begun.set()
        return attempts(sweep_id, number)

    def run() -> None:
        assert has_begun.wait(60)
        for step in steps:
            time.sleep(0.7)
            step()

    thread = threading.Thread(target=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "attempts", counted)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def _running(fabricate: Fabricator) -> tuple[Lease, str]:
    """A sweep whose trial 0 runs and has logged nothing, and where its log is."""
    lease = fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5, "equivariance_weight": 0.0}, is_baseline=True)
    return lease, f"/v1/sweeps/{lease.sweep_id}/trials/0/logs"


def _writer(fabricate: Fabricator, lease: Lease, number: int) -> Callable[[], None]:
    """Has the log hold so many of `LINES`."""
    return lambda: fabricate.log(lease.sweep_id, 0, "".join(LINES[:number]))


def test_what_comes_after(http: TestClient, fabricate: Fabricator) -> None:
    lease, logs = _running(fabricate)
    fabricate.log(lease.sweep_id, 0, "0123456789")
    for after, rest in ((0, "0123456789"), (4, "456789"), (10, ""), (99, "")):
        answer = http.get(logs, params={"after": after})
        assert (answer.status_code, answer.text) == (200, rest)
        assert answer.headers["content-length"] == str(len(rest))


def test_an_attempt_that_has_ended_is_told_at_once(
    http: TestClient, fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.logs._UPLOAD_SECONDS", 60.0)
    logs = f"/v1/sweeps/{fabricate.finished()}/trials/2/logs?follow=true"
    started = time.monotonic()
    answer = http.get(logs)
    assert (answer.status_code, answer.text) == (200, "trial 2 begins\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert http.get(f"{logs}&after=6").text == "2 begins\n"
    answer = http.get(f"{logs}&after=15")
    assert (answer.status_code, answer.content) == (204, b"")
    assert time.monotonic() - started < 30, "nothing is waited for"


def test_all_of_a_log_of_many_pieces(http: TestClient, fabricate: Fabricator) -> None:
    text = "".join(f"line {number}\n" for number in range(300_000))
    assert len(text) > 3 * 2**20
    sweep_id = fabricate.finished()
    fabricate.log(sweep_id, 0, text)
    assert http.get(f"/v1/sweeps/{sweep_id}/trials/0/logs?follow=true").text == text


def test_a_running_attempt_is_followed_to_its_end(http: TestClient, fabricate: Fabricator) -> None:
    lease, logs = _running(fabricate)
    steps = [_writer(fabricate, lease, number) for number in range(1, 5)]
    with _meanwhile(fabricate.store, *steps, lambda: lease.interrupt_trial(0, reason="worker lost")):
        answer = http.get(logs, params={"follow": True})
    assert (answer.status_code, answer.text) == (200, "".join(LINES))


def test_lines_arrive_as_they_are_written(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    lease, logs = _running(live_fabricate)
    with (
        httpx2.Client(base_url=live.url, timeout=20) as http,
        http.stream("GET", logs, params={"follow": True}) as stream,
    ):
        assert stream.status_code == 200, "before anything is logged"
        pieces = stream.iter_bytes()
        for number, line in enumerate(LINES, start=1):
            _writer(live_fabricate, lease, number)()
            assert next(pieces) == line.encode()
        lease.finish_trial(0, TrialState.FAILED)
        assert list(pieces) == []


@pytest.mark.parametrize("end", ["sweep", "deletion"])
def test_a_log_ends_with_its_sweep(http: TestClient, fabricate: Fabricator, end: str) -> None:
    lease, logs = _running(fabricate)
    fabricate.log(lease.sweep_id, 0, "begins\n")
    steps: list[Callable[[], Any]] = [lambda: lease.finish_sweep(SweepState.CANCELLED)]
    if end == "deletion":

        def end_and_delete() -> None:
            lease.finish_sweep(SweepState.CANCELLED)
            fabricate.store.control.delete(lease.sweep_id)

        steps = [end_and_delete]
    with _meanwhile(fabricate.store, *steps):
        assert http.get(logs, params={"follow": True}).text == "begins\n"


def test_an_attempt_that_logged_nothing(http: TestClient, fabricate: Fabricator) -> None:
    lease, logs = _running(fabricate)
    with _meanwhile(fabricate.store, lambda: lease.interrupt_trial(0, reason="worker lost")):
        answer = http.get(logs, params={"follow": True})
    assert (answer.status_code, answer.text) == (200, "")
    assert http.get(logs, params={"follow": True}).status_code == 204
    lease.start_attempt(0, 2, {"temperature": 0.5}, is_baseline=True)
    assert http.get(logs, params={"follow": True, "attempt": 1}).status_code == 204
    assert http.get(logs, params={"follow": True, "attempt": 3}).status_code == 404


@pytest.fixture
def far(settings: Settings, store: Store, bucket: str) -> tuple[TestClient, Fabricator]:
    """The service on an object store."""
    app = create_app(replace(settings, storage_uri=f"{bucket}/logs"), store)
    return TestClient(app, raise_server_exceptions=False), Fabricator(store, f"{bucket}/logs")


def test_the_last_lines_come_to_an_object_store_after_the_end(
    far: tuple[TestClient, Fabricator], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker uploads them once it hears that its trial has ended."""
    http, fabricate = far
    lease, logs = _running(fabricate)
    _writer(fabricate, lease, 1)()
    end = partial(lease.finish_trial, 0, TrialState.FAILED)
    with _meanwhile(store, end, _writer(fabricate, lease, 4)):
        assert http.get(logs, params={"follow": True}).text == "".join(LINES), "by one who was there"

    lease, logs = _running(fabricate)
    lease.finish_trial(0, TrialState.FAILED)
    now = {"seconds": store.clock()}
    monkeypatch.setattr(store, "clock", lambda: now["seconds"])
    wait = partial(now.update, seconds=now["seconds"] + 60)
    with _meanwhile(store, _writer(fabricate, lease, 4), wait):
        assert http.get(logs, params={"follow": True}).text == "".join(LINES), "by one who came after it"


@pytest.mark.parametrize("difference", [-3600, 3600])
def test_clocks_that_differ_delay_nothing(
    far: tuple[TestClient, Fabricator], store: Store, difference: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt seems to have ended an hour ago, or an hour from now."""
    http, fabricate = far
    sweep_id = fabricate.finished()
    clock = store.clock
    monkeypatch.setattr(store, "clock", lambda: clock() + difference)
    monkeypatch.setattr("service.logs._UPLOAD_SECONDS", 60.0)
    started = time.monotonic()
    logs = f"/v1/sweeps/{sweep_id}/trials/2/logs?follow=true"
    assert http.get(logs).text == "trial 2 begins\n"
    assert http.get(f"{logs}&after=15").status_code == 204
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("away", ["storage", "database"])
def test_a_stream_is_cut_where_something_is_away(
    http: TestClient,
    store: Store,
    fabricate: Fabricator,
    away: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lease, logs = _running(fabricate)
    fabricate.log(lease.sweep_id, 0, "begins\n")

    def fail(*_: Any) -> None:
        raise StorageError("/mnt/secret: no") if away == "storage" else OperationalError("", {}, Exception())

    victim, method = (Folder, "head") if away == "storage" else (store.engine, "connect")
    with _meanwhile(store, lambda: monkeypatch.setattr(victim, method, fail)):
        answer = TestClient(http.app).get(logs, params={"follow": True})  # raises what the stream does
    assert (answer.status_code, answer.text) == (200, "begins\n")
    assert [record.levelno for record in caplog.records if record.name.startswith("service")] == [
        logging.ERROR
    ]
    answer = http.get(logs, params={"follow": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "secret" not in answer.text


def test_followers_do_not_hold_a_service_that_ends(own_process: ServiceProcess) -> None:
    with opened(own_process.settings) as store:
        fabricate = Fabricator(store, own_process.settings.storage_uri)
        lease, logs = _running(fabricate)
        fabricate.log(lease.sweep_id, 0, "begins\n")
        with (
            httpx2.Client(base_url=own_process.url, timeout=20) as http,
            http.stream("GET", logs, params={"follow": True}) as stream,
        ):
            pieces = stream.iter_bytes()
            assert next(pieces) == b"begins\n"
            started = time.monotonic()
            own_process.process.terminate()
            assert list(pieces) == []
            own_process.process.wait(timeout=30)
            assert time.monotonic() - started < 8
    log = own_process.log_path.read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log
