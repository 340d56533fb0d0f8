"""Where this installation keeps things and what it may read: the `CARE_SWEEP_*` settings."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from care_sweep.errors import InvalidDocument, Problem

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of one process, read once at its start.

    Attributes:
        home: holds everything a local instance keeps (CARE_SWEEP_HOME, default `~/.care-sweep`).
        database_url: SQLAlchemy URL (CARE_SWEEP_DATABASE_URL, default SQLite below `home`).
        storage_uri: folder of checkpoints and logs (CARE_SWEEP_STORAGE_URI, default below `home`).
        data_roots: folders that the paths of a sweep's datasets (`folder:`, `parquet:`, `imagenet100:`) must
            lie under (CARE_SWEEP_DATA_ROOTS, separated by `:`, default `home/data`).
        url: where the client finds the service (CARE_SWEEP_URL).
        ray_address: an existing Ray cluster (RAY_ADDRESS); None for a local one.
    """

    home: Path
    database_url: str
    storage_uri: Path
    data_roots: tuple[Path, ...]
    url: str
    ray_address: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            InvalidDocument: a setting cannot be used; its pointer is the setting's name.
        """
        home = Path(environment.get("CARE_SWEEP_HOME") or "~/.care-sweep").expanduser().absolute()
        storage = environment.get("CARE_SWEEP_STORAGE_URI") or str(home / "storage")
        if "://" in storage:
            detail = "must be a folder; object stores are not supported yet"
            raise InvalidDocument([Problem("CARE_SWEEP_STORAGE_URI", detail, storage)])
        roots = environment.get("CARE_SWEEP_DATA_ROOTS") or str(home / "data")
        return cls(
            home=home,
            database_url=environment.get("CARE_SWEEP_DATABASE_URL") or f"sqlite:///{home / 'care-sweep.db'}",
            storage_uri=Path(storage).expanduser().absolute(),
            data_roots=tuple(Path(root).expanduser().absolute() for root in roots.split(os.pathsep) if root),
            url=environment.get("CARE_SWEEP_URL") or "http://127.0.0.1:8484",
            ray_address=environment.get("RAY_ADDRESS") or None,
        )

    @property
    def scratch_directory(self) -> Path:
        """What may be deleted whenever nothing runs."""
        return self.home / "scratch"

    @property
    def download_directory(self) -> Path:
        """Where torchvision keeps the datasets it downloads."""
        return self.home / "datasets"
