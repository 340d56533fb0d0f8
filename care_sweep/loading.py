"""Where may a checkpoint come from? A file, or an http(s) URL; `care_sweep.load` is this `load`."""

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit

from care_sweep.connection import Connection
from care_sweep.learn.checkpoint import LoadedEncoder, loads
from care_sweep.learn.checkpoint import load as load_file

__all__ = ["load"]

_TIMEOUT_SECONDS = 30.0


def load(source: str | Path) -> LoadedEncoder:
    """The encoder of a checkpoint, on the CPU, from a file or an http(s) URL.

    The URL may be a service's (`/v1/sweeps/ID/checkpoints/best`) or any that answers the file. What arrives
    must be a whole checkpoint, each part with its SHA-256; it is never unpickled or extracted.

    Raises:
        CheckpointError: what is there is missing, truncated, damaged, no checkpoint, or of another format
            version.
        ServiceError: the server refused, or could not be reached.
    """
    if not (isinstance(source, str) and source.startswith(("http://", "https://"))):
        return load_file(source)
    scheme, host, path, query, _ = urlsplit(source)
    with (
        closing(Connection(f"{scheme}://{host}", _TIMEOUT_SECONDS)) as server,
        TemporaryDirectory() as folder,
    ):
        target = Path(folder) / "checkpoint.tar"
        server.download(urlunsplit(("", "", path or "/", query, "")), target, needs_digest=False)
        return loads(target.read_bytes(), source)
