"""Where may a checkpoint come from? A file, or an http(s) URL; `care_sweep.load` is this `load`."""

import os
import re
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit

from care_sweep.connection import Connection, without_password
from care_sweep.errors import CheckpointError
from care_sweep.learn.checkpoint import LoadedEncoder, loads
from care_sweep.learn.checkpoint import load as load_file

__all__ = ["load"]

_TIMEOUT_SECONDS = 30.0
_SCHEME = re.compile(r"(file(?=:)|[A-Za-z][A-Za-z0-9+.-]+(?=://))", re.IGNORECASE)


def load(source: str | Path) -> LoadedEncoder:
    """The encoder of a checkpoint, on the CPU, from a file or an http(s) URL.

    The URL may be a service's (`/v1/sweeps/ID/checkpoints/best`) or any that answers the file. What arrives
    must be a whole checkpoint, each part with its SHA-256; it is never unpickled or extracted.

    Raises:
        CheckpointError: what is there is missing, truncated, damaged, no checkpoint, or of another format
            version; or the source is no path and no http(s) URL.
        ServiceError: the server refused, or could not be reached.
    """
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise CheckpointError(
            f"{source!r} is no place of a checkpoint: give the path of a file or an http(s) URL"
        )
    scheme = _SCHEME.match(source) if isinstance(source, str) else None
    if scheme is None:
        return load_file(source)
    name = without_password(str(source))
    if scheme[1].lower() == "file":
        raise CheckpointError(f"{name}: files are named by their path, without file:")
    if scheme[1].lower() not in ("http", "https"):
        raise CheckpointError(
            f"{name}: {scheme[1]} is not read; download the checkpoint and give its path, or an http(s) URL"
        )
    host, path = _parts(str(source), name)
    with (
        closing(Connection(f"{scheme[1].lower()}://{host}", _TIMEOUT_SECONDS)) as server,
        TemporaryDirectory() as folder,
    ):
        target = Path(folder) / "checkpoint.tar"
        server.download(path, target, needs_digest=False)
        return loads(target.read_bytes(), name)


def _parts(url: str, name: str) -> tuple[str, str]:
    """Host (with user and port) and path (with query) of a URL.

    Raises:
        CheckpointError: it is malformed; the message calls it `name`.
    """
    problem = ""
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
        if not (parts.hostname and port_fits):
            problem = "it has no host" if port_fits else "its port is 0"
    except ValueError as error:
        problem = str(error).replace(url, name)
    if not url.isprintable() or " " in url:
        problem = "it has a space or a control character in it"
    if problem:
        raise CheckpointError(f"{name!r} is not the URL of a checkpoint: {problem}")
    return parts.netloc, urlunsplit(("", "", parts.path or "/", parts.query, ""))
