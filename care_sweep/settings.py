"""Where this installation keeps things and what it may read: the `CARE_SWEEP_*` settings."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from care_sweep.errors import InvalidDocument, Problem
from care_sweep.storage import S3_URI

__all__ = ["Settings", "service_url", "token_path"]

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[1-9][0-9]{0,4}")
_HOST = re.compile(r"[a-z0-9:]([a-z0-9._:-]{0,251}[a-z0-9])?")  # also an address of IPv6


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
        data_uris: the prefixes of object stores, `s3://bucket/prefix`, that such datasets may lie under
            (CARE_SWEEP_DATA_ROOTS).
        url: where the client finds the service (CARE_SWEEP_URL).
        token_path: the file of the token that the client sends, unless CARE_SWEEP_TOKEN holds one
            (CARE_SWEEP_TOKEN_PATH, default `home/token`).
        ray_address: the control service of an existing Ray cluster, "host:port" (RAY_ADDRESS); None for a
            local one.
        ray_token_path: the file of Ray's token, with which the service asks Ray's dashboard
            (RAY_AUTH_TOKEN_PATH).
        num_checkpoints_kept: so many checkpoints of a sweep are kept, its best, beside those of its baselines
            (CARE_SWEEP_KEEP_CHECKPOINTS); None for all.
        max_active_sweeps: so many sweeps a runner drives at once, and divides the cluster between them
            (CARE_SWEEP_MAX_ACTIVE_SWEEPS, default 4); others wait.
        auth: `required`, the service answers nobody without a token; `auto`, only on a loopback address
            (CARE_SWEEP_AUTH). On no other address can it be had without.
        hosts: names under which the service is called beside its own (CARE_SWEEP_HOSTS, separated by commas).
        requests_per_second: of a token, or of an address without one, where tokens are required
            (CARE_SWEEP_REQUESTS_PER_SECOND); ten seconds' worth may come at once.
    """

    home: Path
    database_url: str
    storage_uri: str
    data_roots: tuple[Path, ...]
    url: str
    token_path: Path
    ray_address: str | None
    ray_token_path: Path | None = None
    num_checkpoints_kept: int | None = None
    max_active_sweeps: int = 4
    auth: str = "auto"
    hosts: tuple[str, ...] = ()
    requests_per_second: float = 50.0
    data_uris: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            InvalidDocument: a setting cannot be used; its pointer is the setting's name.
        """
        home = _home(environment)
        roots, uris = _data_roots(environment.get("CARE_SWEEP_DATA_ROOTS") or str(home / "data"))
        return cls(
            home=home,
            database_url=environment.get("CARE_SWEEP_DATABASE_URL") or f"sqlite:///{home / 'care-sweep.db'}",
            storage_uri=_storage_uri(environment.get("CARE_SWEEP_STORAGE_URI") or str(home / "storage")),
            data_roots=roots,
            data_uris=uris,
            url=service_url(environment),
            token_path=token_path(environment),
            ray_address=_ray_address(environment.get("RAY_ADDRESS")),
            ray_token_path=_path(environment.get("RAY_AUTH_TOKEN_PATH")),
            num_checkpoints_kept=_num_kept(environment.get("CARE_SWEEP_KEEP_CHECKPOINTS") or "all"),
            max_active_sweeps=_num_active(environment.get("CARE_SWEEP_MAX_ACTIVE_SWEEPS") or "4"),
            auth=_auth(environment.get("CARE_SWEEP_AUTH") or "auto"),
            hosts=_hosts(environment.get("CARE_SWEEP_HOSTS") or ""),
            requests_per_second=_rate(environment.get("CARE_SWEEP_REQUESTS_PER_SECOND") or "50"),
        )

    def requires_tokens(self, address: str) -> bool:
        """Whether a service that listens on this IP address answers nobody without a token."""
        return self.auth == "required" or not ip_address(address).is_loopback

    @property
    def scratch_directory(self) -> Path:
        """What may be deleted whenever nothing runs."""
        return self.home / "scratch"

    @property
    def download_directory(self) -> Path:
        """Where torchvision keeps the datasets it downloads, and below `s3` what object stores have sent."""
        return self.home / "datasets"


def service_url(environment: Mapping[str, str] = os.environ) -> str:
    """`Settings.url` alone, which no other setting keeps from being read."""
    return environment.get("CARE_SWEEP_URL") or "http://127.0.0.1:8484"


def token_path(environment: Mapping[str, str] = os.environ) -> Path:
    """`Settings.token_path` alone, which no other setting keeps from being read."""
    given = environment.get("CARE_SWEEP_TOKEN_PATH") or _home(environment) / "token"
    return Path(given).expanduser().absolute()


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("CARE_SWEEP_HOME") or "~/.care-sweep").expanduser().absolute()


def _ray_address(given: str | None) -> str | None:
    """Never a guess of Ray's, as for `auto`: the cluster that it finds could be a stranger's."""
    if not given:
        return None
    if not _ADDRESS.fullmatch(given):
        detail = "must be the host and port of the cluster's control service, as 10.0.0.1:6379"
        raise InvalidDocument([Problem("RAY_ADDRESS", detail, given)])
    return given


def _path(given: str | None) -> Path | None:
    return Path(given).expanduser().absolute() if given else None


def _data_roots(given: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Folders and prefixes of object stores."""
    roots = [root for root in re.split(rf"{os.pathsep}(?!//)", given) if root]
    uris = tuple(root.rstrip("/") for root in roots if "://" in root)
    for uri in uris:
        if not S3_URI.fullmatch(uri):
            detail = "must be folders or s3://bucket/prefix, in letters, digits, '.', '_' and '-'"
            raise InvalidDocument([Problem("CARE_SWEEP_DATA_ROOTS", detail, uri)])
    return tuple(Path(root).expanduser().absolute() for root in roots if "://" not in root), uris


def _num_kept(given: str) -> int | None:
    if given == "all":
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", given):
        detail = "must be all, or how many of the best are kept, from 1"
        raise InvalidDocument([Problem("CARE_SWEEP_KEEP_CHECKPOINTS", detail, given)])
    return int(given)


def _num_active(given: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", given):
        detail = "must be how many sweeps a runner drives at once, from 1"
        raise InvalidDocument([Problem("CARE_SWEEP_MAX_ACTIVE_SWEEPS", detail, given)])
    return int(given)


def _auth(given: str) -> str:
    if given not in ("auto", "required"):
        detail = "must be required, or auto: required on every address but a loopback one"
        raise InvalidDocument([Problem("CARE_SWEEP_AUTH", detail, given)])
    return given


def _hosts(given: str) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in given.split(",") if host.strip())
    for host in hosts:
        if not _HOST.fullmatch(host):
            detail = "must be names of hosts separated by commas, without port or scheme"
            raise InvalidDocument([Problem("CARE_SWEEP_HOSTS", detail, host)])
    return hosts


def _rate(given: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given) or float(given) == 0:
        detail = "must be how many requests a second, above 0"
        raise InvalidDocument([Problem("CARE_SWEEP_REQUESTS_PER_SECOND", detail, given)])
    return float(given)


def _storage_uri(given: str) -> str:
    scheme, is_uri, _ = given.partition("://")
    if not is_uri:
        return str(Path(given).expanduser().absolute())
    uri = given.rstrip("/")
    if S3_URI.fullmatch(uri):
        return uri
    detail = (
        "must be a folder or s3://bucket/prefix, in letters, digits, '.', '_' and '-'; the endpoint and the "
        "credentials of an object store come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and their like"
    )
    received = f"{scheme}://..." if "@" in given or "?" in given else given  # may hold a secret
    raise InvalidDocument([Problem("CARE_SWEEP_STORAGE_URI", detail, received)])
