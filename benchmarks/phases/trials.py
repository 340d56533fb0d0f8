"""Does a sweep lose anything when what it runs on is killed? Rounds of kills, an instance for each."""

import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from few_images import cut_few_images

from care_sweep.client import Client
from care_sweep.errors import ServiceError
from care_sweep.layout import trial_prefix
from care_sweep.run.open_trials import MAX_LOSSES
from care_sweep.spec import TrialState
from care_sweep.store import Store, TrialRecord

from .kept import kept, load_of
from .promises import broken_promises, curves, redone_epochs, store_in, unequal_curves
from .victims import Serving, lifetimes

__all__ = ["PROMISED_SECONDS", "document", "listened", "trials"]

PROMISED_SECONDS = {"driver": 45.0, "worker": 45.0, "raylet": 45.0, "runner": 45.0, "gcs_server": 90.0}
"""After so long the trials that ran go on."""

_ORPHAN_SECONDS = 60.0
_KILLS_A_ROUND = 6
_NUM_AT_ONCE = 2
_LONGEST_CALM_SECONDS = 8.0
_AT_START_UP = 0.3  # of the kills come before what the one before has killed is there again
_PATIENCE_SECONDS = 300.0
_PROCESS = re.compile(r"process (\d+)")
_COUNTS = (
    "sweeps",
    "trials",
    "attempts",
    "kills_at_start_up",
    "measurements",
    "epochs_trained_again",
    "trials_compared",
)


def trials(folder: Path, seed: int, kills: Mapping[str, int], shape: Mapping[str, int]) -> dict[str, Any]:
    """Kill what sweeps need while they run; then compare what was told with what is stored.

    `shape` is that of each sweep: `num_trials` and `epochs`.
    """
    chance = random.Random(f"{seed} trials")  # noqa: S311
    victims = [victim for victim, count in kills.items() for _ in range(count)]
    chance.shuffle(victims)
    undisturbed = kept(folder / "undisturbed.json", lambda home: _undisturbed(home, shape))
    found = [undisturbed]
    for first in range(0, len(victims), _KILLS_A_ROUND):
        number = first // _KILLS_A_ROUND

        def do(home: Path, first: int = first, number: int = number) -> dict[str, Any]:
            its_chance = random.Random(f"{seed} trials {number}")  # noqa: S311
            these = victims[first : first + _KILLS_A_ROUND]
            return _Round(home, its_chance, these, shape, undisturbed["curves"]).run()

        found.append(kept(folder / f"round-{number:02d}.json", do))
    return _summary(found)


def _summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rounds = found[1:]
    recoveries = [recovery for one in rounds for recovery in one["recoveries"]]
    seconds = {
        victim: sorted(r["seconds"] for r in recoveries if r["killed"][-1] == victim)
        for victim in PROMISED_SECONDS
    }
    killed = [victim for recovery in recoveries for victim in recovery["killed"]]
    sums = {key: sum(one[key] for one in rounds) for key in _COUNTS}
    return {
        "rounds": len(rounds),
        "kills": {victim: killed.count(victim) for victim in seconds if victim in killed},
        "median_seconds_to_progress": {v: s[len(s) // 2] for v, s in seconds.items() if s},
        "most_seconds_to_progress": {v: s[-1] for v, s in seconds.items() if s},
        **sums,
        "most_seconds_of_an_orphan": max(one["most_seconds_of_an_orphan"] for one in rounds),
        "seconds": sum(one["seconds"] for one in found),
        "load_average": load_of(found),
        "commit": sorted({one["commit"] for one in found}),
        "broken": [problem for one in found for problem in one["broken"]],
        "broke_before": [problem for one in found for problem in one["broke_before"]],
    }


def document(dataset: str, shape: Mapping[str, int], name: str = "chaos") -> dict[str, Any]:
    """A sweep of small trials over a dataset; every one of a shape proposes the same points.

    Up to six trials of three parameters are drawn at random, whatever has ended before them.
    """
    parameters = {
        "temperature": {"type": "float", "low": 0.1, "high": 0.5},
        "equivariance_weight": {"type": "float", "low": 0.0, "high": 1.0},
        "augmentation_strength": {"type": "float", "low": 0.5, "high": 1.0},
    }
    fixed = {"dataset": dataset, "encoder": "resnet_tiny", "epochs": shape["epochs"], "batch_size": 32}
    fixed |= {"num_splits": 4, "probe_epochs": 5, "knn_neighbors": 20}
    return {
        "name": name,
        "space": {"parameters": parameters, "fixed": fixed},
        "num_trials": shape["num_trials"],
        "max_concurrent_trials": _NUM_AT_ONCE,
        "early_stopping": "none",
        "resources": {"cpus_per_trial": 1},
    }


def listened(client: Client, sweep_id: str, told: list[dict[str, Any]]) -> threading.Thread:
    """A started reader that never goes away: it puts what the service tells of a sweep into `told`."""

    def listen() -> None:
        while True:
            with suppress(ServiceError):
                after = told[-1]["sequence"] if told else 0
                told.extend(dict(event) for event in client.events(sweep_id, after=after))
                return
            time.sleep(0.5)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    return thread


def _undisturbed(home: Path, shape: Mapping[str, int]) -> dict[str, Any]:
    dataset = cut_few_images(home / "data" / "few")
    with Serving(home, "--num-cpus", "2") as instance, Client(instance.url) as client:
        sweep_id = client.submit(document(dataset, shape))["id"]
        client.wait(sweep_id, timeout=1200)
    with store_in(home) as store:
        found = curves(store, sweep_id)
    short = [
        f"{key} has {len(curve)} epochs" for key, curve in found.items() if len(curve) != shape["epochs"]
    ]
    return {"curves": found, "broken": short}


@dataclass
class _Sweep:
    id: str
    told: list[dict[str, Any]]
    reader: threading.Thread


@dataclass
class _Stricken:
    """What a kill, or several in a row, hit: trials that must be attempted anew, by number."""

    sweep_id: str
    last_measurement: int
    attempts: dict[int, int] = field(default_factory=dict)


class _Round:
    """Some kills on one instance, which always has a sweep to run."""

    def __init__(
        self,
        home: Path,
        chance: random.Random,
        victims: Sequence[str],
        shape: Mapping[str, int],
        undisturbed: Mapping[str, Any],
    ) -> None:
        self._home, self._chance, self._victims = home, chance, victims
        self._shape, self._undisturbed = shape, undisturbed
        self._sweeps: list[_Sweep] = []
        self._recoveries: list[dict[str, Any]] = []
        self._orphans: list[tuple[float, tuple[int, str]]] = []
        self._num_at_start_up = 0
        self._longest_orphan = 0.0
        self._broken: list[str] = []

    def run(self) -> dict[str, Any]:
        """The kills, and what is left of the sweeps when they have ended."""
        self._dataset = cut_few_images(self._home / "data" / "few")
        with Serving(self._home, "--num-cpus", "2") as instance, Client(instance.url) as client:
            self._instance, self._client = instance, client
            with store_in(self._home) as self._store:
                self._kill_all()
                for sweep in self._sweeps:
                    self._wait_for(sweep)
        with store_in(self._home) as store:
            return self._findings(store)

    def _kill_all(self) -> None:
        chain: list[str] = []
        for position, victim in enumerate(self._victims):
            self._running_sweep()
            time.sleep(self._chance.uniform(0.0, _LONGEST_CALM_SECONDS))
            stricken = self._kill(victim)
            if stricken is None:
                self._broken.append(f"no {victim} was there to be killed")
                continue
            self._num_at_start_up += bool(chain)
            chain.append(victim)
            is_last = position + 1 == len(self._victims)
            if is_last or self._chance.random() >= _AT_START_UP:
                self._judge(chain, stricken)
                chain = []

    def _running_sweep(self) -> _Sweep:
        """The last one, or another where it has ended."""
        if not self._sweeps or self._store.state(self._sweeps[-1].id).is_terminal:
            told: list[dict[str, Any]] = []
            number = len(self._sweeps)
            sweep_id = self._client.submit(document(self._dataset, self._shape, f"chaos {number}"))["id"]
            self._sweeps.append(_Sweep(sweep_id, told, listened(self._client, sweep_id, told)))
        return self._sweeps[-1]

    def _kill(self, victim: str) -> _Stricken | None:
        workers = lifetimes(self._instance.pids("worker")) if victim == "driver" else set()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (killed := self._kill_now(victim, sweep_id := self._running_sweep().id)) is None:
            if time.monotonic() > deadline:
                return None
        self._orphans += [(time.monotonic(), worker) for worker in workers]
        stricken = _Stricken(sweep_id, self._store.last_measurement(sweep_id))
        its_trial = self._trials_of_workers(sweep_id).get(killed)
        for trial in self._open_trials(sweep_id):
            is_hit = trial.state is TrialState.WAITING or victim != "worker" or trial.number == its_trial
            if is_hit:
                stricken.attempts[trial.number] = trial.attempt
        return stricken

    def _kill_now(self, victim: str, sweep_id: str) -> int | None:
        if victim != "worker":
            return self._instance.kill_once_there(victim)
        return self._instance.kill_once_there(victim, lambda pids: self._fit_worker(sweep_id, pids))

    def _fit_worker(self, sweep_id: str, pids: Sequence[int]) -> int | None:
        """One whose trial does not fail for being lost once more: that is no promise broken."""
        worn_out = {
            trial.number
            for trial in self._open_trials(sweep_id)
            if self._num_losses(sweep_id, trial.number) >= MAX_LOSSES - 1
        }
        its_trial = self._trials_of_workers(sweep_id)
        fit = [pid for pid in pids if not worn_out or its_trial.get(pid, min(worn_out)) not in worn_out]
        return self._chance.choice(fit) if fit else None

    def _open_trials(self, sweep_id: str) -> list[TrialRecord]:
        return [trial for trial in self._store.trials(sweep_id).items if not trial.state.is_terminal]

    def _trials_of_workers(self, sweep_id: str) -> dict[int, int]:
        """The open trials by their workers' processes, as their logs tell them."""
        found = {}
        for trial in self._open_trials(sweep_id):
            log = (
                self._storage / trial_prefix(sweep_id, trial.number) / f"attempt-{trial.attempt}" / "log.txt"
            )
            told = _PROCESS.search(log.read_text()) if log.is_file() else None
            if told is not None:
                found[int(told[1])] = trial.number
        return found

    def _num_losses(self, sweep_id: str, number: int) -> int:
        return sum(attempt.reason == "worker lost" for attempt in self._store.attempts(sweep_id, number))

    def _judge(self, chain: Sequence[str], stricken: _Stricken) -> None:
        """Wait until what was hit goes on and no orphan lives, and hold the times against the promises."""
        began, seconds = time.monotonic(), None
        while seconds is None or self._orphans:
            time.sleep(0.1)
            self._look_for_orphans()
            passed = round(time.monotonic() - began, 1)
            if seconds is None and (self._goes_on(stricken) or passed > _PATIENCE_SECONDS):
                seconds = passed
        load = round(os.getloadavg()[0], 1)
        self._recoveries.append({"killed": list(chain), "seconds": seconds, "load_average": load})
        promised = max(PROMISED_SECONDS[victim] for victim in chain)
        if seconds > promised:
            what = f"{', '.join(chain)} killed: progress after {seconds} s, promised {promised:.0f}"
            self._broken.append(f"{what} (load average {load})")

    def _look_for_orphans(self) -> None:
        living = lifetimes([worker[0] for _, worker in self._orphans])
        for killed_at, worker in list(self._orphans):
            age = round(time.monotonic() - killed_at, 1)
            if worker in living and age <= _ORPHAN_SECONDS:
                continue
            self._orphans.remove((killed_at, worker))
            self._longest_orphan = max(self._longest_orphan, age)
            if worker in living:
                self._broken.append(f"worker {worker[0]} outlives its driver by {age} s")

    def _goes_on(self, stricken: _Stricken) -> bool:
        """So many of the trials that were hit have measured in a later attempt, or ended, as run at once."""
        if self._store.state(stricken.sweep_id).is_terminal:
            return True
        if not stricken.attempts:
            return self._store.last_measurement(stricken.sweep_id) > stricken.last_measurement
        measured = {m.trial_number: m.attempt for m in self._store.measurements(stricken.sweep_id)}
        gone_on = [
            measured.get(trial.number, 0) > stricken.attempts[trial.number] or trial.state.is_terminal
            for trial in self._store.trials(stricken.sweep_id).items
            if trial.number in stricken.attempts
        ]
        return sum(gone_on) >= min(len(gone_on), _NUM_AT_ONCE)

    def _wait_for(self, sweep: _Sweep) -> None:
        deadline = time.monotonic() + 2 * _PATIENCE_SECONDS
        while not self._store.state(sweep.id).is_terminal:
            if time.monotonic() > deadline:
                self._broken.append(
                    f"{sweep.id} has not ended {2 * _PATIENCE_SECONDS:.0f} s after the last kill"
                )
                return
            time.sleep(0.5)
        sweep.reader.join(30)
        if sweep.reader.is_alive():
            self._broken.append(f"{sweep.id} has ended, and its stream of events has not")

    def _findings(self, store: Store) -> dict[str, Any]:
        counts = dict.fromkeys(_COUNTS, 0)
        counts |= {"sweeps": len(self._sweeps), "kills_at_start_up": self._num_at_start_up}
        for sweep in self._sweeps:
            self._broken += broken_promises(store, self._storage, sweep.id, sweep.told)
            num_redone, problems = redone_epochs(store, self._storage, sweep.id)
            num_compared, unequal = unequal_curves(self._undisturbed, curves(store, sweep.id))
            self._broken += problems + [f"{sweep.id}: {problem}" for problem in unequal]
            ended = store.trials(sweep.id).items
            counts["trials"] += len(ended)
            counts["attempts"] += sum(trial.attempt for trial in ended)
            counts["measurements"] += len(store.measurements(sweep.id))
            counts["epochs_trained_again"] += num_redone
            counts["trials_compared"] += num_compared
        num_hits = sum(
            1 if victim == "worker" else _NUM_AT_ONCE for r in self._recoveries for victim in r["killed"]
        )
        if (num_again := counts["attempts"] - counts["trials"]) > num_hits:
            self._broken.append(f"{num_again} attempts were begun anew, the kills explain {num_hits}")
        if counts["trials_compared"] < counts["trials"]:
            self._broken.append(f"{counts['trials_compared']} of {counts['trials']} trials could be compared")
        return {
            **counts,
            "recoveries": self._recoveries,
            "most_seconds_of_an_orphan": self._longest_orphan,
            "broken": self._broken,
        }

    @property
    def _storage(self) -> Path:
        return self._home / "storage"
