"""Which images does a dataset name mean, and may they be read?

A leaf that needs no torch, so that the service can refuse a sweep whose images are not there.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from care_sweep.errors import DatasetError
from care_sweep.storage import S3_URI

__all__ = ["DATASET_FORMS", "DatasetSource", "locate", "refuse_escapes", "require_one_size"]

_TORCHVISION = {  # the file or folder that torchvision leaves once it has downloaded the set
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
    "flowers102": "flowers-102",
}
_Kind = Literal["bundled", "torchvision", "folder", "parquet", "imagenet100"]
_WITH_PATH: dict[str, _Kind] = {"folder": "folder", "parquet": "parquet", "imagenet100": "imagenet100"}
_OF_MIXED_SIZE = ("flowers102", "imagenet100")
DATASET_FORMS = (
    "cifar10-mini",
    *_TORCHVISION,
    *(f"{kind}:PATH" for kind in _WITH_PATH),
    *(f"{kind}:s3://BUCKET/PREFIX" for kind in _WITH_PATH),
)


@dataclass(frozen=True)
class DatasetSource:
    """A dataset: where it is, or where it is fetched from.

    Attributes:
        path: None for the bundled one, torchvision's root for its sets.
        uri: of what lies in an object store and has no path yet; whether anything is there, nobody asked.
    """

    name: str
    kind: _Kind
    path: Path | None
    uri: str | None = None


def locate(
    name: str,
    *,
    download_directory: Path,
    roots: Sequence[Path] | None,
    uris: Sequence[str] = (),
    download: bool = False,
) -> DatasetSource:
    """Find the images that `name` means.

    Args:
        name: one of `DATASET_FORMS`.
        download_directory: where torchvision's sets are kept.
        roots: folders that a path must lie under after links are followed; None allows every path and URI.
        uris: prefixes of object stores that a URI must lie under.
        download: torchvision's sets need not be there yet.

    Raises:
        DatasetError: the name has no meaning, the path lies outside the roots, or nothing is there.
    """
    if name == "cifar10-mini":
        return DatasetSource(name, "bundled", None)
    if name in _TORCHVISION:
        if not download and not (download_directory / _TORCHVISION[name]).exists():
            raise DatasetError(
                f"dataset {name!r} is not in {download_directory}; "
                "`care-sweep train --download` fetches it, or use cifar10-mini, which is bundled"
            )
        return DatasetSource(name, "torchvision", download_directory)
    kind, separator, text = name.partition(":")
    if not separator or not text or kind not in _WITH_PATH:
        raise DatasetError(f"unknown dataset {name!r}; use one of {', '.join(DATASET_FORMS)}")
    if "://" in text:
        _check_uri(name, text, None if roots is None else uris)
        return DatasetSource(name, _WITH_PATH[kind], None, text)
    path = _resolve(name, text, roots)
    if roots is not None and not any(path.is_relative_to(root.resolve()) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise DatasetError(
            f"dataset {name!r} lies outside the data roots ({allowed}); "
            "move it there, or have the operator add its folder to CARE_SWEEP_DATA_ROOTS"
        )
    if not _is_there(path):
        raise DatasetError(f"dataset {name!r}: there is no {path}")
    return DatasetSource(name, _WITH_PATH[kind], path)


def require_one_size(name: str, *, is_resized: bool) -> None:
    """See that the images of a published set of mixed sizes will be brought to one, before any is read.

    Raises:
        DatasetError: they will not.
    """
    if not is_resized and name.partition(":")[0] in _OF_MIXED_SIZE:
        raise DatasetError(
            f"dataset {name!r} has images of mixed sizes: "
            "give `resize` (the side in pixels) to bring all images to one size"
        )


def refuse_escapes(source: DatasetSource, roots: Sequence[Path]) -> None:
    """Follow every link below a folder of images.

    Raises:
        DatasetError: one leads out of the roots.
    """
    todo, seen = [source.path] if source.path and source.path.is_dir() else [], set()
    while todo:
        folder = todo.pop()
        seen.add(folder)
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path).resolve() if entry.is_symlink() else Path(entry.path)
                if entry.is_symlink() and not any(path.is_relative_to(root.resolve()) for root in roots):
                    raise DatasetError(
                        f"dataset {source.name!r}: {entry.path} is a link out of the data roots"
                    )
                if path.is_dir() and path not in seen:
                    todo.append(path)


def _check_uri(name: str, uri: str, allowed: Sequence[str] | None) -> None:
    if not S3_URI.fullmatch(uri) or uri.count("/") < 3:  # a bucket alone is too much to mean
        raise DatasetError(
            f"dataset {name!r}: write s3://BUCKET/PREFIX, in letters, digits, '.', '_' and '-'"
        )
    if allowed is not None and not any(f"{uri}/".startswith(f"{root}/") for root in allowed):
        roots = ", ".join(allowed) or "no s3:// is among them"
        raise DatasetError(
            f"dataset {name!r} lies outside the data roots ({roots}); "
            "have the operator add its prefix to CARE_SWEEP_DATA_ROOTS"
        )


def _resolve(name: str, text: str, roots: Sequence[Path] | None) -> Path:
    """The absolute path that a text means, links followed; a relative one is sought below the roots."""
    try:
        path = Path(text).expanduser()
        if roots is not None and not path.is_absolute():
            path = next((root / path for root in roots if _is_there(root / path)), path)
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(f"dataset {name!r} is no path on this system: {error}") from error


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a null character, a folder that may not be looked into
        return False
