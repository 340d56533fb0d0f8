"""Where do checkpoints and logs lie? A folder or an S3 bucket, which look the same from here.

Nothing of an object store is loaded before one is opened.
"""

import re
from pathlib import Path

from care_sweep.storage.contract import Storage, StoredObject
from care_sweep.storage.folder import Folder

__all__ = ["S3_URI", "Storage", "StoredObject", "open_storage"]

S3_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
"""The whole of such a text is the address of a bucket, or of a prefix in one."""


def open_storage(uri: str) -> Storage:
    """The storage that `Settings.storage_uri` names: the path of a folder, or `s3://bucket/prefix`.

    Nothing is asked of it yet: whether it can be reached shows when it is used. An object store's endpoint,
    region and credentials come from the `AWS_*` variables of the environment.

    Raises:
        StorageError: the library that speaks to object stores is not installed.
    """
    if not uri.startswith("s3://"):
        return Folder(Path(uri))
    from care_sweep.storage.bucket import Bucket  # noqa: PLC0415  (the library is an extra)

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return Bucket(bucket, prefix)
