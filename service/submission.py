"""Can this sweep be accepted? From the body to a document, to a sweep, to a sweep that can run here."""

from collections.abc import Iterator, Sequence
from typing import Any

from care_sweep.datasets import locate, require_one_size
from care_sweep.documents import shorten
from care_sweep.errors import DatasetError, InvalidDocument, Problem
from care_sweep.search.catalog import read_document, resolve_sweep
from care_sweep.settings import Settings
from care_sweep.spec import SweepSpec, TrialConfig
from care_sweep.store import ClusterRecord, Store, SweepRecord
from service.body import Sent

__all__ = ["accept", "submit"]


def submit(
    body: Sent, settings: Settings, store: Store, idempotency_key: str | None
) -> tuple[SweepRecord, bool]:
    """The sweep that a body was made, and whether it is new.

    What a key has made is answered as it was, whatever has become of the cluster and the images since.

    Raises:
        InvalidDocument: as `accept`.
        IdempotencyKeyReused: the key was used with another body.
    """
    made = None if idempotency_key is None else store.submitted(idempotency_key, body.sha256)
    if made is not None:
        return made, False
    spec = accept(body, settings, store)
    return store.submit(spec, idempotency_key=idempotency_key, body_sha256=body.sha256)


def accept(body: Sent, settings: Settings, store: Store) -> SweepSpec:
    """The sweep that a body asks for, with every default and the whole space.

    Raises:
        InvalidDocument: it is malformed, its images are not here, or the cluster can never run its trials.
    """
    spec = resolve_sweep(read_document(body.text))
    problems = [*_dataset_problems(spec, settings), *_resource_problems(spec, store.cluster())]
    if problems:
        raise InvalidDocument(problems)
    return spec


def _dataset_problems(spec: SweepSpec, settings: Settings) -> Iterator[Problem]:
    fixed = spec.space.fixed
    name = str(fixed.get("dataset", TrialConfig.model_fields["dataset"].default))
    try:
        locate(
            name,
            download_directory=settings.download_directory,
            roots=settings.data_roots,
            uris=settings.data_uris,
        )
        require_one_size(name, is_resized="resize" in fixed)
    except DatasetError as error:
        yield Problem("/space/fixed/dataset", str(error), shorten(name))


def _resource_problems(spec: SweepSpec, cluster: ClusterRecord | None) -> Iterator[Problem]:
    """Ray waits for ever for what no node has. A cluster that nobody knows may have anything, and so may one
    without a worker: an autoscaler has taken them all, or they start again."""
    nodes: Sequence[Any] = cluster.report.get("nodes", []) if cluster is not None and cluster.is_known else []
    alive = [node["resources"] for node in nodes if node["is_alive"]]
    wanted = spec.resources
    most_cpus = max((resources.get("cpus", 0) for resources in alive), default=0)
    if not most_cpus:  # head and runner are nodes without CPUs
        return
    if wanted.cpus_per_trial > most_cpus:
        detail = f"the largest node of the cluster has {most_cpus:g} CPUs; use at most that many"
        yield Problem("/resources/cpus_per_trial", detail, shorten(wanted.cpus_per_trial))
    most_gpus = max(resources.get("gpus", 0) for resources in alive)
    if wanted.gpus_per_trial != "auto" and wanted.gpus_per_trial > most_gpus:
        detail = (
            f"the largest node of the cluster has {most_gpus:g} GPUs, and a trial does not span two; use at "
            "most that many, or auto, which asks only for what there is"
        )
        yield Problem("/resources/gpus_per_trial", detail, shorten(wanted.gpus_per_trial))
