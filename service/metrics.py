"""Route: what Prometheus reads. The measures of the service, and the store's figures of all sweeps."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from care_sweep.errors import DatabaseUnavailable
from care_sweep.spec import SweepState, TrialState
from care_sweep.store import ClusterRecord, Figures, HeldFigures, Store, installation_figures
from service.problems import answers

__all__ = ["StoreCollector", "router"]

router = APIRouter(tags=["metrics"])

_KEPT_SECONDS = 5.0
_MOST_HELD = 100
"""So many held sweeps, the oldest, have series of their own."""


_SPENT = (
    ("care_sweep_active_seconds", "Seconds that a held sweep was driven", "active_seconds"),
    (
        "care_sweep_gpu_seconds",
        "Seconds of a held sweep's reported epochs, times the GPUs that each trial had",
        "gpu_seconds",
    ),
    (
        "care_sweep_search_seconds",
        "Seconds that a held sweep's search took to propose and to learn",
        "search_seconds",
    ),
    ("care_sweep_images_trained", "Images that a held sweep's reported epochs trained on", "num_images"),
)


@router.get("/metrics", response_class=PlainTextResponse, responses=answers(403, 503))
def metrics(request: Request) -> Response:
    """The figures of the service and of everybody's sweeps, in Prometheus' text format."""
    return Response(generate_latest(request.app.state.measures.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class StoreCollector(Collector):
    """The store's figures, asked for at most every 5 s however many read them."""

    def __init__(self, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._kept_until = 0.0
        self._stood_since: dict[str, tuple[int, float]] = {}

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would collect it all to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if not self._kept or self._monotonic() >= self._kept_until:
                self._kept = list(self._families())
                self._kept_until = self._monotonic() + _KEPT_SECONDS
            return self._kept

    def _families(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("care_sweep_store_up", "Whether the database answers; without it others lack")
        try:
            found = installation_figures(self._store.engine, most_held=_MOST_HELD)
            cluster = self._store.cluster()
        except DatabaseUnavailable:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from _of_states(found)
        yield from _of_held(found.held)
        yield self._lease_ages(found.held)
        if cluster is not None:
            yield from _of_cluster(cluster, self._store.clock())

    def _lease_ages(self, held: Iterable[HeldFigures]) -> Metric:
        """By this process's monotonic clock, from the first look that saw the counter as it stands.

        No clock of another machine has a say, as with the runners that wait for a lease to run out.
        """
        now, before = self._monotonic(), self._stood_since
        self._stood_since = {}
        family = GaugeMetricFamily(
            "care_sweep_lease_age_seconds",
            "How long a held sweep's lease was seen to stand still; 0 where it has moved since the last look",
            labels=("sweep",),
        )
        for one in held:
            counter, since = before.get(one.id, (one.lease_counter, now))
            if counter != one.lease_counter:
                since = now
            self._stood_since[one.id] = one.lease_counter, since
            family.add_metric((one.id,), now - since)
        return family


def _of_states(found: Figures) -> Iterator[Metric]:
    sweeps = GaugeMetricFamily("care_sweep_sweeps", "Sweeps that there are, by state", labels=("state",))
    for sweep_state in SweepState:
        sweeps.add_metric((sweep_state,), found.sweeps.get(sweep_state, 0))
    yield sweeps
    trials = GaugeMetricFamily("care_sweep_trials", "Trials that there are, by state", labels=("state",))
    for trial_state in TrialState:
        trials.add_metric((trial_state,), found.trials.get(trial_state, 0))
    yield trials
    yield GaugeMetricFamily("care_sweep_held_sweeps", "Sweeps that a runner holds", value=found.num_held)


def _of_held(held: Iterable[HeldFigures]) -> Iterator[Metric]:
    """What a sweep has spent, ever; a sweep that ends leaves, with what it spent since the last look."""
    for name, documentation, attribute in _SPENT:
        family = CounterMetricFamily(name, documentation, labels=("sweep",))
        for one in held:
            family.add_metric((one.id,), getattr(one, attribute))
        yield family


def _of_cluster(record: ClusterRecord, now: float) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "care_sweep_cluster_report_age_seconds",
        "Since a runner last told of the Ray cluster, by the clocks of two machines",
        value=max(0.0, now - record.reported_at),
    )
    if not record.is_known:
        return
    for key, documentation in (
        ("resources", "What the Ray cluster has"),
        ("available", "What of it no trial holds"),
    ):
        family = GaugeMetricFamily(f"care_sweep_cluster_{key}", documentation, labels=("kind",))
        for kind, amount in sorted(record.report.get(key, {}).items()):
            family.add_metric((kind,), amount)
        yield family
    alive = GaugeMetricFamily("care_sweep_cluster_nodes", "Nodes of the Ray cluster that are alive")
    alive.add_metric((), sum(bool(node.get("is_alive")) for node in record.report.get("nodes", ())))
    yield alive
