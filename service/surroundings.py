"""Routes: what a sweep can draw on (search spaces, the cluster), and whether the service is well."""

from importlib.metadata import version

from fastapi import APIRouter, HTTPException

from care_sweep.search.catalog import load_space, space_names
from care_sweep.spec import SearchSpace
from service.problems import RETRY_AFTER, answers
from service.request import ReadinessHeld, StoreHeld
from service.schemas import Cluster, SearchSpaces, Status

__all__ = ["health", "router"]

router = APIRouter()
health = APIRouter(tags=["health"])
"""What a probe asks, and so anybody may."""

_VERSION = version("care-sweep")


@router.get("/v1/search-spaces", tags=["search spaces"])
def list_spaces() -> SearchSpaces:
    """The search spaces that a sweep can name."""
    return SearchSpaces(search_spaces=[load_space(name) for name in space_names()])


@router.get("/v1/search-spaces/{name}", tags=["search spaces"], responses=answers(404))
def get_space(name: str) -> SearchSpace:
    """One search space."""
    return load_space(name)


@router.get("/v1/cluster", tags=["cluster"])
def cluster(store: StoreHeld) -> Cluster:
    """The Ray cluster that a runner tells of, and where its dashboard is."""
    newest = store.cluster()
    return Cluster() if newest is None else Cluster.of(newest, store.clock())


@health.get("/healthz")
def healthz() -> Status:
    """The process answers."""
    return Status(status="ok", version=_VERSION)


@health.get("/readyz", responses=answers(503))
def readyz(readiness: ReadinessHeld) -> Status:
    """The process answers, and so do its database, which takes writes, and its storage."""
    troubles = list(readiness.troubles())
    if troubles:
        raise HTTPException(503, "; ".join(troubles), RETRY_AFTER)
    return Status(status="ready", version=_VERSION)
