"""A log line is one line, steers no terminal and tells no secret."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from care_sweep.log_lines import begin_logging, without_secrets

TOKEN = "cs_" + "Ab-_9" * 8 + "xyz"
URL = "postgresql+psycopg://care:hunter2@db.example:5432/care?password=hunter3&connect_timeout=3"


@contextmanager
def _logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr("sys.stderr", stream)
    level = root.level
    begin_logging("%(levelname)s %(name)s: %(message)s")
    try:
        yield stream
    finally:
        root.setLevel(level)


def test_what_is_logged_begins_no_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with _logged(monkeypatch) as stream:
        logging.getLogger("a").warning("refused: %s", "/x\nINFO a: all is well\r\x1b[2J\u202e")
    assert stream.getvalue() == "WARNING a: refused: /x\\nINFO a: all is well\\r\\x1b[2J\\u202e\n"


def test_no_secret_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    with _logged(monkeypatch) as stream:
        logging.getLogger("a").error("%s of %s", TOKEN, URL)
        try:
            raise RuntimeError(f"cannot open {URL} with {TOKEN}\x1b[31m")
        except RuntimeError:
            logging.getLogger("a").exception("it failed")
    text = stream.getvalue()
    assert "Traceback (most recent call last):\n" in text
    assert "db.example" in text
    for secret in (TOKEN, TOKEN[3:], "hunter2", "hunter3", "care:", "\x1b"):
        assert secret not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {TOKEN}, then", "Bearer cs_***, then"),
        ("http://127.0.0.1:8484/v1/sweeps", "http://127.0.0.1:8484/v1/sweeps"),
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("postgresql://me:a@b/c@host/db", "postgresql://***@host/db"),
        ("metrics cs_loss", "metrics cs_loss"),
    ],
)
def test_what_is_left_of_a_secret(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
