"""No name leads out of the storage: a corpus for every path parameter, and for the rows that name files."""

import hashlib
import http.client
import itertools
import json
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

import pytest
from conftest import ServiceProcess, opened, service_process
from fabrication import Fabricator
from sqlalchemy import text

from care_sweep.store.database import writing

MARK = b"what nobody may read"
UPS = ("../", "..\\", "%2e%2e/", "..%2f", "%2e%2e%2f", "..%5c", "%252e%252e%252f", "....//", "..;/", "..%00/")
UPS += ("%c0%ae%c0%ae/", "..%c0%af", "%uff0e%uff0e/", ".%2e/", "..//", "./../")
TARGETS = ("secret", "care-sweep.db", "etc/passwd", "proc/self/environ")
ABSOLUTE = (
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "\\\\host\\share",
    "~/secret",
)
ABSOLUTE += (
    "C:\\secret",
    "/proc/self/environ",
    "..",
    ".",
    "%00",
    "secret%00.tar",
    "CON",
    "$HOME/secret",
    "|ls",
)

CORPUS = [
    *(up * depth + target for up, depth, target in itertools.product(UPS, (1, 2, 3, 8), TARGETS)),
    *ABSOLUTE,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """With a secret in the folders around its storage."""
    home = tmp_path_factory.mktemp("traversal") / "home"
    with service_process(home) as service:
        for folder in (home, home.parent, home / "storage", home / "storage" / "sweeps"):
            folder.mkdir(exist_ok=True)
            (folder / "secret").write_bytes(MARK)
        yield service


def _asked(service: ServiceProcess, paths: list[str]) -> Iterator[tuple[str, int, bytes]]:
    """The answer to each path, which goes out as it stands."""
    address = urlsplit(service.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    for path in paths:
        connection.putrequest("GET", path, skip_host=False)
        connection.endheaders()
        answer = connection.getresponse()
        yield path, answer.status, answer.read()
    connection.close()


def _is_ours(status: int, body: bytes) -> bool:
    outside = (MARK, b"root:x:", b"SQLite format 3", b"PATH=")
    return 400 <= status < 500 and not any(found in body for found in outside)


def test_the_corpus_is_large() -> None:
    assert len(set(CORPUS)) >= 200


@pytest.fixture(scope="module")
def sweep(service: ServiceProcess) -> str:
    with opened(service.settings) as store:
        return Fabricator(store, service.settings.storage_uri).finished()


@pytest.mark.slow
def test_no_path_leads_out(service: ServiceProcess, sweep: str) -> None:
    templates = [
        *("/{}", "/docs/{}", "/static/{}", "/v1/{}", "/v1/sweeps/{}", "/v1/search-spaces/{}"),
        *("/v1/sweeps/{}/best", "/v1/sweeps/{}/checkpoints/best", "/v1/sweeps/{}/export"),
        *("/v1/sweeps/{}/trials/0/logs", "/v1/sweeps/{}/trials/0/checkpoint"),
        f"/v1/sweeps/{sweep}/checkpoints/{{}}",
        *(f"/v1/sweeps/{sweep}/trials/{{}}{rest}" for rest in ("", "/logs", "/checkpoint", "/measurements")),
    ]
    names = [name if name.isascii() and " " not in name else quote(name) for name in CORPUS]
    paths = [template.format(name) for template in templates for name in names]
    leaks = [(path, status) for path, status, body in _asked(service, paths) if not _is_ours(status, body)]
    assert leaks == []


@pytest.mark.slow
def test_no_name_in_a_row_leads_out(service: ServiceProcess, sweep: str) -> None:
    """Workers name checkpoints; one that was taken over may name anything."""
    stored = {"sha256": hashlib.sha256(MARK).hexdigest(), "size_bytes": len(MARK)}
    change = text("UPDATE trials SET checkpoint = :checkpoint WHERE sweep_id = :sweep AND number = 1")
    leaks = []
    with opened(service.settings) as store:
        for name in {*CORPUS, *map(unquote, CORPUS)}:
            with writing(store.engine) as connection:
                checkpoint = json.dumps({"name": name, **stored})
                connection.execute(change, {"checkpoint": checkpoint, "sweep": sweep})
            paths = [f"/v1/sweeps/{sweep}/trials/1/checkpoint", f"/v1/sweeps/{sweep}/checkpoints/best"]
            leaks += [(name, s) for _, s, body in _asked(service, paths) if not _is_ours(s, body)]
    assert leaks == []
