"""What does the store hold of a sweep, against all that was told of it while processes died?"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from care_sweep.layout import trial_prefix
from care_sweep.settings import Settings
from care_sweep.spec import TrialState
from care_sweep.store import Store, TrialRecord, open_database

__all__ = ["broken_promises", "curves", "redone_epochs", "store_in", "unequal_curves"]

_EPOCH_OF_A_LOG = re.compile(r" INFO epoch (\d+):")


@contextmanager
def store_in(home: Path) -> Iterator[Store]:
    """The store of the instance in this home, read past its service."""
    engine = open_database(Settings.from_environment({"CARE_SWEEP_HOME": str(home)}).database_url)
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def broken_promises(
    store: Store, storage: Path, sweep_id: str, told: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Every promise about an ended sweep that does not hold; `told` are the events that a reader got."""
    sweep, trials = store.sweep(sweep_id), store.trials(sweep_id).items
    if sweep.state != "SUCCEEDED":
        yield f"{sweep_id} ended as {sweep.state}: {sweep.reason}: {sweep.message}"
    numbers = [trial.number for trial in trials]
    if numbers != list(range(sweep.spec.num_trials)):
        yield f"{sweep_id} has trials {numbers}, {sweep.spec.num_trials} were asked for"
    measured = {(m.trial_number, m.epoch): m.metrics for m in store.measurements(sweep_id)}
    for trial in trials:
        name = f"{sweep_id}, trial {trial.number}"
        if trial.state is not TrialState.COMPLETE:
            yield f"{name}: is {trial.state}: {trial.reason}: {trial.message}"
        epochs = sorted(epoch for number, epoch in measured if number == trial.number)
        if epochs != list(range(1, sweep.spec.epochs + 1)):
            yield f"{name}: has epochs {epochs}"
        if (problem := _checkpoint_problem(storage, trial)) is not None:
            yield f"{name}: {problem}"
    stored = [event.sequence for event in store.events(sweep_id, limit=1_000_000)]
    if [event["sequence"] for event in told] != stored:
        yield f"{sweep_id}: {len(told)} events were told, {len(stored)} are stored, or in another order"
    for event in told:
        data = event["data"]
        if (
            event["kind"] == "measurement"
            and measured.get((data["number"], data["epoch"])) != data["metrics"]
        ):
            yield f"{sweep_id}, trial {data['number']}: epoch {data['epoch']} was told and is not stored"


def _checkpoint_problem(storage: Path, trial: TrialRecord) -> str | None:
    if trial.checkpoint is None:
        return "has no checkpoint" if trial.state is TrialState.COMPLETE else None
    path = storage / trial_prefix(trial.sweep_id, trial.number) / trial.checkpoint.name
    if not path.is_file():
        return f"its checkpoint {trial.checkpoint.name} is not there"
    if hashlib.sha256(path.read_bytes()).hexdigest() != trial.checkpoint.sha256:
        return f"its checkpoint {trial.checkpoint.name} is damaged"
    return None


def redone_epochs(store: Store, storage: Path, sweep_id: str) -> tuple[int, list[str]]:
    """How many epochs were trained again, and where an attempt trained more than the last one again.

    The logs of attempts tell it: a worker logs an epoch before it reports it, whoever hears of it.
    """
    num_redone, broken = 0, []
    for trial in store.trials(sweep_id).items:
        done = 0
        for attempt in range(1, trial.attempt + 1):
            log = storage / trial_prefix(sweep_id, trial.number) / f"attempt-{attempt}" / "log.txt"
            epochs = [int(n) for n in _EPOCH_OF_A_LOG.findall(log.read_text())] if log.is_file() else []
            again = [epoch for epoch in epochs if epoch <= done]
            num_redone += len(again)
            if again not in ([], [done]):
                broken.append(f"{sweep_id}, trial {trial.number}: attempt {attempt} trained {again} again")
            done = max([done, *epochs])
    return num_redone, broken


def curves(store: Store, sweep_id: str) -> dict[str, list[Mapping[str, float]]]:
    """All metrics of all epochs of each trial, by its parameters as JSON."""
    found: dict[int, list[Mapping[str, float]]] = {}
    for row in store.measurements(sweep_id):
        found.setdefault(row.trial_number, []).append(row.metrics)
    trials = store.trials(sweep_id).items
    return {json.dumps(dict(t.parameters), sort_keys=True): found.get(t.number, []) for t in trials}


def unequal_curves(
    undisturbed: Mapping[str, Sequence[Mapping[str, float]]],
    disturbed: Mapping[str, Sequence[Mapping[str, float]]],
) -> tuple[int, list[str]]:
    """How many trials have the parameters of an undisturbed one, and which of them measured otherwise."""
    shared = undisturbed.keys() & disturbed.keys()
    return len(shared), [
        f"{key} measured otherwise" for key in sorted(shared) if undisturbed[key] != disturbed[key]
    ]
