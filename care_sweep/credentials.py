"""Which token does a client send? That of CARE_SWEEP_TOKEN, or of a file that its owner alone can read."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from care_sweep.errors import CareSweepError
from care_sweep.settings import token_path

__all__ = ["own_token"]


def own_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of this user, if there is one.

    Raises:
        CareSweepError: others may read the file.
    """
    token = environment.get("CARE_SWEEP_TOKEN")
    if token:
        return token
    path = token_path(environment)
    return _private_text(path).strip() if path.is_file() else None


def _private_text(path: Path) -> str:
    with path.open() as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise CareSweepError(f"others may read the token in {path}: `chmod 600 {path}` first")
        return file.read()
