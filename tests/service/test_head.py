"""HEAD: as GET in every header, without a body, and without waiting for what would be streamed."""

import time

import httpx2
import pytest
from conftest import ServiceProcess
from fabrication import Fabricator
from fastapi.testclient import TestClient

VARYING = ("date",)


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/v1/sweeps", "/v1/sweeps?page_size=0", "/nowhere", "/docs", "/openapi.json"],
)
def test_it_is_answered_as_get_is(http: TestClient, path: str) -> None:
    get, head = http.get(path), http.head(path)
    assert (head.status_code, head.headers) == (get.status_code, get.headers)
    assert (head.content, len(get.content)) == (b"", int(head.headers["content-length"]))


def test_of_a_checkpoint_it_tells_the_size(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    """In the real process, and the connection takes the next request."""
    here = f"/v1/sweeps/{live_fabricate.finished()}"
    with httpx2.Client(base_url=live.url) as http:
        for path in (f"{here}/checkpoints/best", f"{here}/trials/0/checkpoint", f"{here}/export"):
            head, get = http.head(path), http.get(path)
            told = [
                {name: value for name, value in answer.headers.items() if name not in VARYING}
                for answer in (head, get)
            ]
            assert told[0] == told[1]
            assert (head.content, head.headers["content-length"]) == (b"", str(len(get.content)))
        part = http.head(f"{here}/checkpoints/best", headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.headers["content-length"]) == (206, "10")


def test_a_stream_ends_with_its_head(live: ServiceProcess, live_fabricate: Fabricator) -> None:
    """The sweep has not ended, so GET would go on."""
    lease = live_fabricate.claimed()
    lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
    live_fabricate.log(lease.sweep_id, 0, "it begins\n")
    here = f"/v1/sweeps/{lease.sweep_id}"
    with httpx2.Client(base_url=live.url, timeout=10) as http:
        for path, media_type in (
            (f"{here}/events", "text/event-stream"),
            (f"{here}/trials/0/logs?follow=true", "text/plain"),
        ):
            head = http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"].startswith(media_type)
        deadline = time.monotonic() + 10
        while "care_sweep_open_event_streams 0.0" not in http.get("/metrics").text:
            assert time.monotonic() < deadline, "the stream goes on unheard"
            time.sleep(0.1)
