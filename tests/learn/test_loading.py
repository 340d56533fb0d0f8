"""`care_sweep.load` from a file and from a URL: redirects, damage, refusals."""

import base64
import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import care_sweep
from care_sweep import connection
from care_sweep.errors import CheckpointError, ServiceError


@pytest.fixture(scope="module")
def server(checkpoint_file: Path) -> Iterator[str]:
    """A web server that knows nothing of care-sweep; its URL."""
    content = checkpoint_file.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/best.tar?token=a%20b")
                self.end_headers()
                return
            bodies = {
                "/best.tar?token=a%20b": content,
                "/digest": content,
                "/damaged": content[:5000] + b"x" + content[5001:],
                "/page": b"<html>sign in</html>",
            }
            body = bodies.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            if self.path == "/digest":
                wrong = hashlib.sha256(b"other").digest()
                self.send_header("Repr-Digest", f"sha-256=:{base64.b64encode(wrong).decode()}:")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/best.tar?token=a%20b", "/moved"])
def test_a_url_gives_what_the_file_gives(server: str, path: str, checkpoint_file: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(care_sweep.load(server + path)(images), care_sweep.load(checkpoint_file)(images))
    assert torch.equal(care_sweep.load(server + path)(images), care_sweep.load(str(checkpoint_file))(images))


def test_damage_is_seen_and_the_url_is_named(server: str) -> None:
    with pytest.raises(CheckpointError, match=f"{server}/damaged: .*download"):
        care_sweep.load(f"{server}/damaged")
    with pytest.raises(CheckpointError, match=f"{server}/page: no tar"):
        care_sweep.load(f"{server}/page")
    with pytest.raises(CheckpointError, match="damaged on its way"):
        care_sweep.load(f"{server}/digest")


def test_refusals(server: str, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="404"):
        care_sweep.load(f"{server}/nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        care_sweep.load(tmp_path / "nothing.tar")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "None is no place of a checkpoint: give the path"),
        ("", "'' is no place"),
        (b"checkpoint.tar", "no place"),
        (3, "3 is no place"),
        ("a\0b", "is no path of a file"),
        ("s3://bucket/best.tar", "s3 is not read; download the checkpoint"),
        ("ftp://host/best.tar", "ftp is not read"),
        ("file:///best.tar", "without file:"),
        ("FILE:best.tar", "without file:"),
        ("http://", "it has no host"),
        ("https:///best.tar", "it has no host"),
        ("http://[::1/best.tar", "not the URL of a checkpoint: Invalid IPv6 URL"),
        ("http://host:port/best.tar", "not the URL of a checkpoint: Port could not be cast"),
        ("http://host:99999/best.tar", "not the URL of a checkpoint: Port out of range"),
        ("http://ho st/best.tar", "a space or a control character"),
        ("http://host/best\0.tar", "a space or a control character"),
    ],
)
def test_what_is_no_source_is_told(source: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        care_sweep.load(source)


def test_the_scheme_of_a_url_is_in_any_case(server: str, checkpoint_file: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    url = f"{server}/best.tar?token=a%20b".replace("http://", "HTTP://")
    assert torch.equal(care_sweep.load(url)(images), care_sweep.load(checkpoint_file)(images))


def test_settings_of_a_service_are_not_read(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # where `ray job submit` finds its cluster
    monkeypatch.setenv("CARE_SWEEP_URL", server)
    care_sweep.load(f"{server}/best.tar?token=a%20b")


@pytest.mark.parametrize("path", ["/damaged", "/page", "/nothing"])
@pytest.mark.parametrize("secret", ["user:pass%40word", "a-token"])
def test_a_password_in_a_url_is_not_told(server: str, path: str, secret: str) -> None:
    with pytest.raises((CheckpointError, ServiceError)) as caught:
        care_sweep.load(server.replace("//", f"//{secret}@") + path)
    assert secret not in str(caught.value)


def test_nor_is_it_told_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BACKOFF_SECONDS", (0.0,))
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ServiceError, match=r"no answer from http://\*\*\*@127") as caught:
            care_sweep.load(f"http://user:secret@127.0.0.1:{unheard.getsockname()[1]}/best.tar")
    assert "secret" not in str(caught.value)
    for url in ("http://user:secret@ho st", "s3://user:secret@bucket/a", "http://user:secret@h:port/"):
        with pytest.raises(CheckpointError) as refused:
            care_sweep.load(url)
        assert "secret" not in str(refused.value)
