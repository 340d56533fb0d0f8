"""The client against a real service: every method, and connections that break in the middle."""

import contextlib
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import ServiceProcess, opened
from fabrication import Fabricator, contents, document

from care_sweep.client import Client
from care_sweep.errors import CheckpointError, ServiceError
from care_sweep.spec import SweepState


def test_submit_and_read_back(client: Client) -> None:
    sweep = client.submit(document())
    assert client.sweep(sweep["id"]) == sweep
    assert client.submit(yaml.safe_dump(document()))["spec"] == sweep["spec"]
    assert client.submit(document(), validate_only=True)["spec"] == sweep["spec"]
    assert client.cancel(sweep["id"])["state"] == "CANCELLED"
    assert client.wait(sweep["id"])["state"] == "CANCELLED"


def test_a_key_makes_one_sweep(client: Client) -> None:
    first, again = (client.submit(document(), idempotency_key="client") for _ in range(2))
    assert first == again
    assert client.submit(document())["id"] != client.submit(document())["id"]


def test_read_a_finished_sweep(client: Client, live_fabricate: Fabricator) -> None:
    sweep = live_fabricate.finished()
    assert [trial["number"] for trial in client.trials(sweep, page_size=3)] == [0, 1, 2, 3]
    assert [trial["number"] for trial in client.trials(sweep, states=["PRUNED"])] == []
    assert client.trial(sweep, 1)["attempts"][0]["attempt"] == 1
    assert [one["epoch"] for one in client.measurements(sweep, 1)] == [1, 2]
    assert client.logs(sweep, 1) == client.logs(sweep, 1, attempt=1) == "trial 1 begins\n"
    assert list(client.follow_logs(sweep, 1)) == ["trial 1 begins\n"]
    assert [one["number"] for one in client.best(sweep, 2)["configurations"]] == [1, 2]
    newest = itertools.islice(client.sweeps(page_size=1), 2)
    assert sweep in [one["id"] for one in newest]
    assert sweep in [one["id"] for one in client.sweeps(states=["SUCCEEDED"])]
    events = list(client.events(sweep))
    assert events[-1]["data"]["state"] == "SUCCEEDED"
    assert list(client.events(sweep, after=events[3]["sequence"])) == events[4:]


def test_surroundings(client: Client) -> None:
    assert client.space(client.spaces()[0]["name"]) == client.spaces()[0]
    assert client.cluster()["nodes"] == []


def test_refusals(client: Client) -> None:
    with pytest.raises(ServiceError) as refused:
        client.submit(document(num_trials=0, seed=-1))
    assert refused.value.status == 422
    assert [problem.pointer for problem in refused.value.problems] == ["/num_trials", "/seed"]
    assert "/num_trials: should be greater than or equal to 1 (received 0)" in str(refused.value)
    for call in (client.sweep, client.cancel, client.best, client.wait, lambda i: list(client.events(i))):
        with pytest.raises(ServiceError, match="no sweep 'nowhere'") as refused:
            call("nowhere")
        assert refused.value.status == 404
    with pytest.raises(ServiceError) as refused:
        client.sweep("../../healthz")
    assert refused.value.status == 404


def test_wait_gives_up(client: Client, live_fabricate: Fabricator) -> None:
    with pytest.raises(TimeoutError, match="QUEUED"):
        client.wait(live_fabricate.queued().id, timeout=0.1)


@pytest.mark.parametrize("url", ["localhost:8484", "ftp://x", "", "http://[", "http://127.0.0.1:1"])
def test_no_service_there(url: str) -> None:
    with pytest.raises(ServiceError) as refused, Client(url) as client:
        client.cluster()
    assert refused.value.status is None


def test_another_program_there() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"
    with _listening() as (listener, url), Client(url) as client:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(page)

        other = threading.Thread(target=serve)
        other.start()
        with pytest.raises(ServiceError, match="care-sweep service"):
            client.cluster()
        other.join()


def test_download(client: Client, live_fabricate: Fabricator, tmp_path: Path) -> None:
    sweep = live_fabricate.finished()
    assert client.download(sweep, tmp_path / "best.tar").read_bytes() == contents(1)
    assert client.download(sweep, tmp_path / "best.tar", number=2).read_bytes() == contents(2)  # replaced
    named = client.download(sweep, tmp_path, number=3)
    assert named == tmp_path / f"{sweep}-trial-00003.tar"
    assert named.read_bytes() == contents(3)
    with pytest.raises(ServiceError):
        client.download(sweep, tmp_path / "none.tar", number=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["best.tar", named.name])


def test_export(client: Client, live_fabricate: Fabricator, tmp_path: Path) -> None:
    sweep = live_fabricate.finished()
    file = client.export(sweep, tmp_path / "trials.csv")
    assert file == tmp_path / "trials.csv"
    assert file.read_bytes().count(b"COMPLETE") == 4
    named = client.export(sweep, tmp_path, file_format="parquet", rows="measurements")
    assert named == tmp_path / f"{sweep}-measurements.parquet"
    assert named.read_bytes().startswith(b"PAR1")
    study = client.export(sweep, tmp_path / "study.db", file_format="optuna")
    assert study.read_bytes().startswith(b"SQLite format 3\0")
    with pytest.raises(ServiceError, match="/query/rows") as refused:
        client.export(sweep, tmp_path / "none.db", file_format="optuna", rows="trials")
    assert refused.value.status == 422
    assert set(tmp_path.iterdir()) == {file, named, study}


def test_an_export_that_takes_long_to_prepare(
    live: ServiceProcess, live_fabricate: Fabricator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than other answers are waited for, but not for ever."""
    sweep = live_fabricate.finished()

    def slowly(data: bytes) -> bytes:
        time.sleep(1.5)
        return data

    with _proxy(live.url, change=slowly) as (url, _), Client(url, timeout=0.5) as client:
        assert client.export(sweep, tmp_path / "trials.csv").is_file()
        monkeypatch.setattr("care_sweep.client._EXPORT_SECONDS", 0.5)
        with pytest.raises(ServiceError, match="timed out"):
            client.export(sweep, tmp_path / "never.csv")


def test_a_download_that_is_cut_goes_on(
    live: ServiceProcess, live_fabricate: Fabricator, tmp_path: Path
) -> None:
    sweep = live_fabricate.finished()
    with _proxy(live.url, cuts=[200_000, 300_000]) as (url, sent), Client(url) as client:
        assert client.download(sweep, tmp_path / "best.tar").read_bytes() == contents(1)
    assert sum(sent) < 800_000  # the 700,000 bytes once, and heads


def test_a_download_that_is_damaged_has_no_name(
    live: ServiceProcess, live_fabricate: Fabricator, tmp_path: Path
) -> None:
    sweep = live_fabricate.finished()
    piece = contents(1)[50_000:50_050]

    def damage(data: bytes) -> bytes:
        return data.replace(piece, piece[::-1])

    with _proxy(live.url, change=damage) as (url, _), Client(url) as client, pytest.raises(CheckpointError):
        client.download(sweep, tmp_path / "best.tar")
    assert list(tmp_path.iterdir()) == []


def test_events_go_on_over_broken_connections(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    sweep = live_fabricate.finished()
    with _proxy(live.url, cuts=[900, 1500]) as (url, sent), Client(url) as client:
        told = [event["sequence"] for event in client.events(sweep)]
    assert told == [record.sequence for record in live_fabricate.store.events(sweep)]
    assert len(sent) == 3


def test_events_go_on_over_a_restart(own_process: ServiceProcess) -> None:
    """The stream that a stopping service ends is not the end of the sweep."""
    with Client(own_process.url) as client:
        sweep = client.submit(document())["id"]
        events = client.events(sweep)
        assert next(events)["data"]["state"] == "QUEUED"
        port = urlsplit(own_process.url).port
        own_process.stop()
        own_process.start(port)
        client.cancel(sweep)
        assert [event["data"]["state"] for event in events] == ["CANCELLED"]


def test_a_wait_goes_on_over_a_restart(own_process: ServiceProcess) -> None:
    with Client(own_process.url) as client, ThreadPoolExecutor(1) as pool:
        sweep = client.submit(document())["id"]
        waiting = pool.submit(client.wait, sweep)
        port = urlsplit(own_process.url).port
        own_process.stop()
        time.sleep(3)  # longer than a single request is tried again
        own_process.start(port)
        client.cancel(sweep)
        assert waiting.result()["state"] == "CANCELLED"


def test_a_wait_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("care_sweep.client.PATIENCE_SECONDS", 0.0)
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServiceError, match="no answer"):
        client.wait("any")


def _request(connection: socket.socket) -> bytes:
    """One whole request: its head may come before its body."""
    read = b""
    while True:
        read += connection.recv(65536)
        head, end, body = read.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if end and len(body) >= (int(length[1]) if length else 0):
            return read


def test_a_submission_that_is_under_way_is_asked_for_again() -> None:
    answers = [
        b"HTTP/1.1 409 Conflict\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"id": "once"}',
    ]
    keys = []
    with _listening() as (listener, url), Client(url) as client:

        def serve() -> None:
            with listener.accept()[0] as connection:
                for answer in answers:
                    keys.append(re.search(rb"Idempotency-Key: (\w+)", _request(connection), re.IGNORECASE))
                    connection.sendall(answer)

        other = threading.Thread(target=serve)
        other.start()
        assert client.submit(document())["id"] == "once"
        other.join()
    assert keys[0] is not None
    assert keys[1] is not None
    assert keys[0][1] == keys[1][1]


def _with_a_long_log(fabricate: Fabricator) -> tuple[str, str]:
    """A finished sweep and what its trial 1 has logged, with characters of two bytes to be cut in two."""
    sweep, text = fabricate.finished(), "ünentwegt\n" * 300_000
    fabricate.log(sweep, 1, text)
    return sweep, text


def test_logs_go_on_over_broken_connections(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    sweep, text = _with_a_long_log(live_fabricate)
    with _proxy(live.url, cuts=[0, 20_001, 500_000]) as (url, sent), Client(url) as client:
        assert "".join(client.follow_logs(sweep, 1, attempt=1)) == text
    assert sum(sent) < len(text.encode()) * 1.1, "what has come is not asked for again"


def test_logs_go_on_over_a_restart(own_process: ServiceProcess) -> None:
    """The stream that a stopping service ends is not the end of the attempt."""
    with opened(own_process.settings) as store, Client(own_process.url) as client:
        fabricate = Fabricator(store, own_process.settings.storage_uri)
        lease = fabricate.claimed()
        lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
        fabricate.log(lease.sweep_id, 0, "begins\n")
        pieces = client.follow_logs(lease.sweep_id, 0)
        assert next(pieces) == "begins\n"
        port = urlsplit(own_process.url).port
        own_process.stop()
        own_process.start(port)
        fabricate.log(lease.sweep_id, 0, "begins\nends\n")
        lease.finish_sweep(SweepState.CANCELLED)
        assert "".join(pieces) == "ends\n"


def test_a_long_silence_is_no_end(
    client: Client, live_fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("care_sweep.connection._STREAM_SILENCE_SECONDS", 3.0)
    monkeypatch.setattr("care_sweep.connection.PATIENCE_SECONDS", 2.0)
    lease = live_fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    ending = threading.Timer(9.0, lease.finish_sweep, [SweepState.CANCELLED])
    ending.start()
    assert list(client.follow_logs(lease.sweep_id, 0)) == []
    assert not ending.is_alive()
    ending.join()


def test_no_logs_to_follow(client: Client, live_fabricate: Fabricator) -> None:
    sweep = live_fabricate.finished()
    for number, attempt, said in ((9, None, "no trial 9"), (1, 7, "no attempt 7")):
        with pytest.raises(ServiceError, match=said) as refused:
            list(client.follow_logs(sweep, number, attempt=attempt))
        assert refused.value.status == 404


def test_a_submission_whose_answer_is_lost_is_made_once(
    live: ServiceProcess, live_fabricate: Fabricator
) -> None:
    with _proxy(live.url, cuts=[0, 0]) as (url, sent), Client(url) as client:
        sweep = client.submit(document(name="once"))
    assert len(sent) == 3
    named = [one for one in live_fabricate.store.sweeps(page_size=1000).items if one.name == "once"]
    assert [one.id for one in named] == [sweep["id"]]
    assert named[0].state is SweepState.QUEUED


@contextlib.contextmanager
def _listening() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _proxy(
    url: str, *, cuts: Sequence[int] = (), change: Callable[[bytes], bytes] = bytes
) -> Iterator[tuple[str, list[int]]]:
    """A way to the service whose first connections break after so many bytes; and what each let by."""
    target = (urlsplit(url).hostname, urlsplit(url).port or 0)
    sent: list[int] = []

    def pump(source: socket.socket, sink: socket.socket, index: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if index is not None:
                    data = change(data)
                    limit = cuts[index] if index < len(cuts) else None
                    if limit is not None and sent[index] + len(data) >= limit:
                        sink.sendall(data[: limit - sent[index]])
                        sent[index] = limit
                        break
                    sent[index] += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    with _listening() as (listener, proxy_url), contextlib.ExitStack() as stack:
        threads: list[threading.Thread] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                for index in itertools.count():
                    near = stack.enter_context(listener.accept()[0])
                    far = stack.enter_context(socket.create_connection(target))
                    sent.append(0)
                    for arguments in ((near, far, None), (far, near, index)):
                        threads.append(threading.Thread(target=pump, args=arguments))
                        threads[-1].start()

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield proxy_url, sent
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close would not
            accepting.join()
            for thread in threads:
                thread.join(timeout=10)
