"""What of Ray's dashboard may pass? The pages to look at, and what they read; nothing that runs or changes.

A list of what passes, for Ray's routes change with its version, and among those that answer GET are some that
run a profiler in a worker, start an actor, or hand out the code of jobs.
"""

import re
from collections.abc import Iterable, Mapping

__all__ = ["MEDIA_TYPES", "is_shown", "media_type_of"]

_INDEX = ""  # the path of the page itself, below `/ray/`
_ID = "[0-9a-f]{1,64}"
_WORKER_LOG = re.compile(rf"worker-{_ID}-[0-9a-f]{{1,16}}-[0-9]{{1,10}}\.(out|err)")
_TABLE = ("detail", "limit", "filter_keys", "filter_predicates", "filter_values", "exclude_driver")
_LOG = ("node_id", "actor_id", "filename", "suffix", "lines", "filter_ansi_code", "download_filename")
_LONGEST_VALUE = 300

_SHOWN: Mapping[re.Pattern[str], tuple[str, ...]] = {
    re.compile(path): names
    for path, names in (
        (_INDEX, ()),
        (r"favicon\.ico", ()),
        (r"static/(css|js|media)/[A-Za-z0-9_-][A-Za-z0-9._-]*", ()),
        ("timezone", ()),
        ("api/authentication_mode", ()),
        ("api/v0/cluster_metadata", ()),
        ("api/v0/runtime_env_redaction", ()),
        ("api/cluster_status", ("format",)),
        ("events", ("view", "job_id")),
        ("nodes", ("view",)),
        (f"nodes/{_ID}", ()),
        ("logical/actors", ()),
        (f"logical/actors/{_ID}", ()),
        ("api/jobs/", ()),
        ("api/jobs/[A-Za-z0-9_-]{1,100}", ()),
        ("api/v0/(actors|nodes|placement_groups|tasks|workers)", _TABLE),
        ("api/v0/tasks/summarize", ("summary_by", *_TABLE)),
        ("api/v0/logs/file", _LOG),
    )
}
"""By path, the names that its query may have."""

MEDIA_TYPES = frozenset(
    {
        "application/javascript",
        "application/json",
        "application/octet-stream",  # fonts
        "image/svg+xml",
        "image/vnd.microsoft.icon",
        "image/x-icon",
        "text/css",
        "text/javascript",
        "text/plain",
    }
)


def is_shown(path: str, query: Iterable[tuple[str, str]]) -> bool:
    """Whether a path below `/ray/`, as it stood in the request, passes with this query.

    Nothing that is percent-encoded does, nor a path with dots for segments. Of Ray's log files only what
    workers printed is shown: those of Ray's own processes may tell the environment of a job.
    """
    names = next((names for shown, names in _SHOWN.items() if shown.fullmatch(path)), None)
    if names is None:
        return False
    asked = list(query)
    given = dict(asked)
    is_fit = all(name in names and len(value) <= _LONGEST_VALUE for name, value in asked)
    is_once = len(given) == len(asked) or not path.startswith("api/v0/logs")
    return is_fit and is_once and (names is not _LOG or _is_of_a_worker(given))


def media_type_of(path: str, content_type: str) -> str | None:
    """What an answer of Ray is passed on as; None where it is of no kind that the pages need."""
    media_type = content_type.partition(";")[0].strip().lower()
    if path == _INDEX:
        return "text/html" if media_type == "text/html" else None
    return media_type if media_type in MEDIA_TYPES else None


def _is_of_a_worker(query: Mapping[str, str]) -> bool:
    if "filename" in query:
        return _WORKER_LOG.fullmatch(query["filename"]) is not None
    return re.fullmatch(_ID, query.get("actor_id", "")) is not None and query.get("suffix") in ("out", "err")
