"""Where may a checkpoint come from? A file, or an http(s) URL; `care_sweep.load` is this `load`."""

import os
import re
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit

from care_sweep.connection import Connection, have_one_origin, without_password
from care_sweep.credentials import own_token
from care_sweep.errors import CheckpointError, ServiceError
from care_sweep.learn.checkpoint import LoadedEncoder, loads
from care_sweep.learn.checkpoint import load as load_file
from care_sweep.settings import service_url

__all__ = ["load"]

_TIMEOUT_SECONDS = 30.0
_SCHEME = re.compile(r"(file(?=:)|[A-Za-z][A-Za-z0-9+.-]+(?=://))", re.IGNORECASE)


def load(source: str | Path) -> LoadedEncoder:
    """The encoder of a checkpoint, on the CPU, from a file or an http(s) URL.

    The URL may be a service's (`/v1/sweeps/ID/checkpoints/best`) or any that answers the file. One with the
    scheme, host and port of CARE_SWEEP_URL, and no other, is sent the user's token. What arrives must be a
    whole checkpoint, each part with its SHA-256; it is never unpickled or extracted.

    Raises:
        CheckpointError: what is there is missing, truncated, damaged, no checkpoint, or of another format
            version; or the source is no path and no http(s) URL.
        ServiceError: the server refused, or could not be reached.
        CareSweepError: others may read the file of the token.
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
    return loads(_fetched(f"{scheme[1].lower()}://{host}", path), name)


def _fetched(server_url: str, path: str) -> bytes:
    """The bytes at a path of a server, which is shown the user's token if it is the user's service."""
    users_url = service_url()
    is_the_users = have_one_origin(server_url, users_url)
    token = own_token() if is_the_users else None
    with (
        closing(Connection(server_url, _TIMEOUT_SECONDS, token)) as server,
        TemporaryDirectory() as folder,
    ):
        target = Path(folder) / "checkpoint.tar"
        try:
            server.download(path, target, needs_digest=False)
        except ServiceError as error:
            if error.status != 401 or is_the_users:
                raise
            here, service = without_password(server_url), without_password(users_url)
            remedy = (
                f"a token goes to CARE_SWEEP_URL alone, {service}: set that to {here} if it is your service"
            )
            raise ServiceError(f"{error}; {remedy}", status=error.status) from error
        return target.read_bytes()


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
