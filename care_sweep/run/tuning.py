"""How does Ray Tune follow the conductor? A searcher that proposes, a scheduler that records, one run.

Ray's own OptunaSearch, ASHAScheduler, checkpoints and restore are not used: see docs/decisions/0002.
"""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from care_sweep.run.conductor import Assignment, Conductor
from care_sweep.run.packing import choose_gpus
from care_sweep.run.worker import run_attempt
from care_sweep.settings import Settings
from care_sweep.spec import Measurement

__all__ = ["capacity_of", "run_trials"]

_MOST_PENDING = "1000"
"""Of trials whose workers start; Tune's own limit is one, so that each waits until the one before it runs.
The searcher proposes none beyond what the cluster holds."""


def run_trials(conductor: Conductor, settings: Settings) -> None:
    """Run a sweep's trials on the connected Ray cluster until the conductor has no more."""
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", _MOST_PENDING)
    cpus, gpus = conductor.spec.resources.cpus_per_trial, choose_gpus(conductor, settings)
    conductor.gpus_per_trial = gpus
    searcher = _ConductedSearcher(conductor, {"CPU": cpus, "GPU": gpus}, settings)
    settings.scratch_directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=settings.scratch_directory, ignore_cleanup_errors=True) as scratch:
        tune.Tuner(
            tune.with_resources(run_attempt, functools.partial(_bundle, cpus)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_ConductedScheduler(conductor),
                num_samples=-1,  # the searcher counts
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the conductor attempts again
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0),
            ),
        ).fit()


class _NotSnapshotted:
    """Tune pickles its parts into its scratch directory; the store is the truth, so they hold nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _ConductedSearcher(_NotSnapshotted, Searcher):
    """Proposes what the conductor wants run, as long as the cluster and the sweep's own limit hold it."""

    def __init__(self, conductor: Conductor, resources: Mapping[str, float], settings: Settings) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor = conductor
        self._resources = resources
        self._settings = settings
        self._assignments: dict[str, Assignment] = {}
        self._is_starved = False

    def suggest(self, trial_id: str) -> Any:
        self._conductor.look()
        if self._conductor.is_finished:
            return Searcher.FINISHED
        is_full = self._conductor.num_running >= self._most_at_once()
        if is_full and not self._conductor.is_out_of_budget:  # then `next` gives up what waits
            return None
        assignment = self._conductor.next()
        if assignment is None:
            return None
        self._assignments[trial_id] = assignment
        return {
            "number": assignment.number,
            "attempt": assignment.attempt,
            "config": assignment.config.model_dump(),
            "storage_uri": self._settings.storage_uri,
            "prefix": assignment.prefix,
            "last_epoch": assignment.last_epoch,
            "gpus": assignment.gpus,
            "scratch_directory": str(self._settings.scratch_directory),
            "download_directory": str(self._settings.download_directory),
            "data_roots": [str(root) for root in self._settings.data_roots],
        }

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Whatever the conductor has not been told by a report was the worker's fault."""
        ended = self._assignments.pop(trial_id)
        how = "its process died" if error else "it returned before its last epoch"
        self._conductor.lost(ended.number, ended.attempt, f"attempt {ended.attempt} ended: {how}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the report that ends a trial never comes here, so the scheduler records them all."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is rebuilt from the store")

    def _most_at_once(self) -> int:
        """Trials beyond what the cluster holds would wait inside Tune, proposed before anything is learnt."""
        capacity = capacity_of([node["Resources"] for node in ray.nodes() if node["Alive"]], self._resources)
        if (capacity == 0) != self._is_starved:
            self._is_starved = capacity == 0
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in self._resources.items() if amount)
            self._conductor.explain(
                f"waiting: no node of the cluster has the {wanted} that a trial needs"
                if self._is_starved
                else None
            )
        limit = self._conductor.spec.max_concurrent_trials
        return capacity if limit is None else min(limit, capacity)


def capacity_of(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """How many trials of `wanted` fit on the nodes; a trial does not span two."""
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items() if amount)
        for node in nodes
    )


class _ConductedScheduler(_NotSnapshotted, FIFOScheduler):
    """Hands every report to the conductor and stops what it says has ended."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        number, attempt = trial.config["number"], trial.config["attempt"]
        measurement = None
        if "measurement" in result:
            measurement = Measurement.model_validate_json(result["measurement"])
        if "failure" in result:
            failure = json.loads(result["failure"])
            self._conductor.failed(number, attempt, measurement=measurement, **failure)
            return str(TrialScheduler.CONTINUE)  # the worker returns or raises by itself
        if "loss" in result:
            self._conductor.lost(number, attempt, **json.loads(result["loss"]))
            return str(TrialScheduler.CONTINUE)
        if "interruption" in result:
            self._conductor.interrupted(number, attempt, result["interruption"])
            return str(TrialScheduler.CONTINUE)
        assert measurement is not None, f"trial {number} reported nothing known"
        ended = self._conductor.measured(number, attempt, measurement)
        is_last = measurement.epoch >= self._conductor.spec.epochs  # it returns by itself
        return str(TrialScheduler.STOP if ended and not is_last else TrialScheduler.CONTINUE)


def _bundle(cpus: int, order: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What an attempt holds, as Tune asks for it."""
    return tune.PlacementGroupFactory([{"CPU": float(cpus), "GPU": order["gpus"]}])
