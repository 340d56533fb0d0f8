"""How does Ray Tune follow the conductor? A searcher that proposes, a scheduler that records, one run.

Ray's own OptunaSearch, ASHAScheduler, checkpoints and restore are not used: see docs/decisions/0002.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from care_sweep.run.allotment import Allotment
from care_sweep.run.conductor import Conductor
from care_sweep.run.nodes import Nodes
from care_sweep.run.open_trials import Assignment
from care_sweep.run.packing import choose_gpus
from care_sweep.run.scratch import scratch_folder
from care_sweep.run.versions import await_same_version, own_version
from care_sweep.run.worker import run_attempt
from care_sweep.settings import Settings
from care_sweep.spec import Measurement, Place

__all__ = ["run_trials"]

_ENVIRONMENT = {
    # Of trials whose workers start; Tune's own limit is one, so that each waits until the one before it runs.
    # The searcher proposes none beyond what the cluster holds.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # Files of each trial for TensorBoard, whose library loads torch: 480 MB, and nobody reads them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

_ACTOR = re.compile(r"actor_id: ([0-9a-f]+)")
"""In Ray's words on an actor that has died; Tune has let go of it when it tells of that."""


def run_trials(
    conductor: Conductor, settings: Settings, work: Callable[[Mapping[str, Any]], None] = run_attempt
) -> None:
    """Run a sweep's trials on the connected Ray cluster until the conductor has no more.

    `work` is what a worker does with one attempt. While the sweep has no share of the cluster, its driver
    holds nothing of Ray and waits.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    nodes = Nodes()
    await_same_version(conductor, nodes)
    allotment = Allotment(conductor, nodes)
    if resources := allotment.await_node():
        conductor.gpus_per_trial = choose_gpus(conductor, settings, resources)
    while allotment.wait():
        _run(conductor, allotment, nodes, settings, work)


def _run(
    conductor: Conductor,
    allotment: Allotment,
    nodes: Nodes,
    settings: Settings,
    work: Callable[[Mapping[str, Any]], None],
) -> None:
    """One run of Ray Tune: until the sweep has no more trials, or no share."""
    cpus = conductor.spec.resources.cpus_per_trial
    searcher = _ConductedSearcher(conductor, allotment, settings)
    with scratch_folder(settings.scratch_directory, "tune-") as scratch:
        tune.Tuner(
            tune.with_resources(work, functools.partial(_bundle, cpus)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_ConductedScheduler(conductor, nodes),
                num_samples=-1,  # the searcher counts
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
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

    def __init__(self, conductor: Conductor, allotment: Allotment, settings: Settings) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor = conductor
        self._allotment = allotment
        self._settings = settings
        self._version = own_version()
        self._assignments: dict[str, Assignment] = {}

    def suggest(self, trial_id: str) -> Any:
        self._conductor.look()
        self._allotment.look()
        if self._conductor.is_finished:
            return Searcher.FINISHED
        # Trials that have ended but not in Tune yet count: else it asks Ray for a place for the next one
        # and, as their worker becomes free, takes that back. Where both come at once, Ray 2.60 keeps the
        # place for ever.
        can_run = len(self._assignments) < self._conductor.most_at_once
        if not can_run and not self._conductor.is_out_of_budget:  # `next` gives up what waits
            has_share = self._conductor.room.share.num_trials or self._assignments
            return None if has_share else Searcher.FINISHED
        assignment = self._conductor.next()
        if assignment is None:
            return None
        self._assignments[trial_id] = assignment
        return {
            "version": self._version,
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
            "data_uris": self._settings.data_uris,
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


class _ConductedScheduler(_NotSnapshotted, FIFOScheduler):
    """Hands every report to the conductor and stops what it says has ended."""

    def __init__(self, conductor: Conductor, nodes: Nodes) -> None:
        super().__init__()
        self._conductor = conductor
        self._nodes = nodes

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Heard before the searcher is told that the trial has ended."""
        number, attempt = trial.config["number"], trial.config["attempt"]
        if trial.error_file is None or not self._conductor.runs(number, attempt):
            return
        actors = _ACTOR.findall(Path(trial.error_file).read_text())
        if actors and self._nodes.was_meant_to_go(actors[-1]):
            self._conductor.displaced(number, attempt, f"attempt {attempt} ended: its node was drained")

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        number, attempt = trial.config["number"], trial.config["attempt"]
        if "place" in result:
            self._conductor.placed(number, attempt, Place.model_validate_json(result["place"]))
            return str(TrialScheduler.CONTINUE)
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
            reason = result.get("interrupted_by", "storage")
            self._conductor.interrupted(number, attempt, result["interruption"], reason=reason)
            return str(TrialScheduler.CONTINUE)
        assert measurement is not None, f"trial {number} reported nothing known"
        ended = self._conductor.measured(number, attempt, measurement)
        self._keep_a_process(tune_controller)
        is_last = measurement.epoch >= self._conductor.spec.epochs  # it returns by itself
        return str(TrialScheduler.STOP if ended and not is_last else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self._keep_a_process(tune_controller)
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)
        return chosen

    def _keep_a_process(self, tune_controller: Any) -> None:
        """Have Tune keep a worker whose trial has ended only where another trial may run in it.

        It keeps one in any case, with what it holds of the cluster, which another sweep may wait for.
        """
        cache = tune_controller._tune_controller._actor_cache
        assert isinstance(cache._may_keep_one, bool), "Ray Tune's cache of workers has changed"
        cache._may_keep_one = self._conductor.has_room


def _bundle(cpus: int, order: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What an attempt holds, as Tune asks for it."""
    return tune.PlacementGroupFactory([{"CPU": float(cpus), "GPU": order["gpus"]}])
