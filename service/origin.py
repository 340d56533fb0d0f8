"""Does a request come from where it may? A web page that its reader opened must not command this service.

On a loopback address only names of this machine are answered, so that a foreign name that was made to point
here (DNS rebinding) reads nothing; and no page of another origin may change anything. On other addresses a
page has no token to send; CARE_SWEEP_HOSTS names those that are answered.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from fastapi import HTTPException, Request

__all__ = ["READS", "own_names", "refuse_foreign_requests"]

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PROBES = ("/healthz", "/readyz")
"""They are called by an address, as an orchestrator knows it; they tell the version and what is away."""

READS = ("GET", "OPTIONS")


def own_names(host: str, address: str, allowed: Collection[str] = ()) -> Collection[str] | None:
    """The names under which a service on `host`, bound to `address`, is called; None where any may be.

    Args:
        allowed: further ones, which a proxy may call it by. Off loopback, others are refused only then.
    """
    if not allowed and not ip_address(address).is_loopback:
        return None
    return _LOOPBACK_NAMES | {host.lower(), *allowed}


def refuse_foreign_requests(request: Request) -> None:
    """Refuse a request that does not call us by our name, or that another page sent.

    Raises:
        HTTPException: 421 for a Host that is not ours, 403 for a change that another origin's page asks for.
    """
    if request.scope["path"] in _PROBES:
        return
    host, names = request.headers.get("host", ""), request.app.state.names
    if names is not None and _authority(f"//{host}").hostname not in names:
        raise HTTPException(421, f"this service is not {host!r}; call it {', '.join(sorted(names))}")
    origin = request.headers.get("origin")
    if origin is not None and request.method not in READS and _authority(origin).netloc != host:
        raise HTTPException(403, f"a page of {origin!r} may not change anything here")


def _authority(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # half a bracket
        return urlsplit("")
