"""Which token a client sends, and where it never shows."""

from pathlib import Path

import pytest

from care_sweep.client import Client
from care_sweep.connection import Connection, have_one_origin
from care_sweep.credentials import own_token
from care_sweep.errors import CareSweepError, ServiceError

TOKEN = "cs_" + "k" * 43


def _environment(home: Path, **more: str) -> dict[str, str]:
    return {"CARE_SWEEP_HOME": str(home), **more}


def _put(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert own_token(_environment(tmp_path)) is None


def test_the_setting_comes_first_and_then_the_file(tmp_path: Path) -> None:
    _put(tmp_path / "token", f"{TOKEN}\n")
    _put(tmp_path / "other", "cs_other")
    assert own_token(_environment(tmp_path)) == TOKEN
    assert own_token(_environment(tmp_path, CARE_SWEEP_TOKEN_PATH=str(tmp_path / "other"))) == "cs_other"
    assert own_token(_environment(tmp_path) | {"CARE_SWEEP_TOKEN": "cs_first"}) == "cs_first"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    _put(tmp_path / "token", TOKEN, mode)
    with pytest.raises(
        CareSweepError, match=r"others may read the token in .*: `chmod 600 .*token` first"
    ) as e:
        own_token(_environment(tmp_path))
    assert TOKEN not in str(e.value)


@pytest.mark.parametrize("token", [f"{TOKEN}\nX-Other: 1", "two words", "ü", "x" * 600])
def test_what_no_header_takes_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ServiceError, match="the token is none") as refused:
        Client("http://127.0.0.1:1", token=token)
    assert token not in str(refused.value)


def test_a_token_shows_in_no_error_and_in_no_repr() -> None:
    with Client("http://127.0.0.1:1", token=TOKEN, timeout=0.2) as client:
        assert TOKEN not in repr(client) + repr(vars(client)) + repr(vars(client._connection))
        with pytest.raises(ServiceError) as away:
            client.delete("abc")
    assert TOKEN not in repr(away.value) + repr(away.value.__cause__)


def test_a_checkpoint_elsewhere_is_asked_for_without_a_token() -> None:
    """`care_sweep.load` takes any URL, so it sends none."""
    connection = Connection("http://elsewhere.example", 1.0)
    assert "authorization" not in connection._http.headers
    connection.close()


@pytest.mark.parametrize(
    ("url", "other", "is_one"),
    [
        ("http://host", "HTTP://Host:80/path", True),
        ("https://host:443", "https://host", True),
        ("http://host", "http://user:pass@host", True),
        ("http://[::1]:8484", "http://[::1]:8484/", True),
        ("http://host", "https://host", False),
        ("http://host", "http://host:81", False),
        ("http://host", "http://host@other", False),
        ("http://host", "http://host.other", False),
        ("http://host", "host", False),
        ("http://host", "http://host:port", False),
        ("http://host", "http://[", False),
    ],
)
def test_one_origin_is_one_scheme_host_and_port(url: str, other: str, is_one: bool) -> None:
    assert have_one_origin(url, other) is is_one
