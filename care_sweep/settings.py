"""Where this installation keeps things and what it may read: the `CARE_SWEEP_*` settings."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from care_sweep.errors import InvalidDocument, Problem

__all__ = ["Settings"]

_S3_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Settings:
    """The settings of one process, read once at its start.

    Attributes:
        home: holds everything a local instance keeps (CARE_SWEEP_HOME, default `~/.care-sweep`).
        database_url: SQLAlchemy URL (CARE_SWEEP_DATABASE_URL, default SQLite below `home`).
        storage_uri: the absolute path of the folder of checkpoints and logs, or `s3://bucket/prefix`
            (CARE_SWEEP_STORAGE_URI, default below `home`).
        data_roots: folders that the paths of a sweep's datasets (`folder:`, `parquet:`, `imagenet100:`) must
            lie under (CARE_SWEEP_DATA_ROOTS, separated by `:`, default `home/data`).
        url: where the client finds the service (CARE_SWEEP_URL).
        ray_address: an existing Ray cluster (RAY_ADDRESS); None for a local one.
        num_checkpoints_kept: so many checkpoints of a sweep are kept, its best, beside those of its baselines
            (CARE_SWEEP_KEEP_CHECKPOINTS); None for all.
    """

    home: Path
    database_url: str
    storage_uri: str
    data_roots: tuple[Path, ...]
    url: str
    ray_address: str | None
    num_checkpoints_kept: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            InvalidDocument: a setting cannot be used; its pointer is the setting's name.
        """
        home = Path(environment.get("CARE_SWEEP_HOME") or "~/.care-sweep").expanduser().absolute()
        roots = environment.get("CARE_SWEEP_DATA_ROOTS") or str(home / "data")
        return cls(
            home=home,
            database_url=environment.get("CARE_SWEEP_DATABASE_URL") or f"sqlite:///{home / 'care-sweep.db'}",
            storage_uri=_storage_uri(environment.get("CARE_SWEEP_STORAGE_URI") or str(home / "storage")),
            data_roots=tuple(Path(root).expanduser().absolute() for root in roots.split(os.pathsep) if root),
            url=environment.get("CARE_SWEEP_URL") or "http://127.0.0.1:8484",
            ray_address=environment.get("RAY_ADDRESS") or None,
            num_checkpoints_kept=_num_kept(environment.get("CARE_SWEEP_KEEP_CHECKPOINTS") or "all"),
        )

    @property
    def scratch_directory(self) -> Path:
        """What may be deleted whenever nothing runs."""
        return self.home / "scratch"

    @property
    def download_directory(self) -> Path:
        """Where torchvision keeps the datasets it downloads."""
        return self.home / "datasets"


def _num_kept(given: str) -> int | None:
    if given == "all":
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", given):
        detail = "must be all, or how many of the best are kept, from 1"
        raise InvalidDocument([Problem("CARE_SWEEP_KEEP_CHECKPOINTS", detail, given)])
    return int(given)


def _storage_uri(given: str) -> str:
    scheme, is_uri, _ = given.partition("://")
    if not is_uri:
        return str(Path(given).expanduser().absolute())
    uri = given.rstrip("/")
    if _S3_URI.fullmatch(uri):
        return uri
    detail = (
        "must be a folder or s3://bucket/prefix, in letters, digits, '.', '_' and '-'; the endpoint and the "
        "credentials of an object store come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and their like"
    )
    received = f"{scheme}://..." if "@" in given or "?" in given else given  # may hold a secret
    raise InvalidDocument([Problem("CARE_SWEEP_STORAGE_URI", detail, received)])
