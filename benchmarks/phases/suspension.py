"""Does a driver that slept past its lease write anything when it wakes up beside its successor?"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from few_images import cut_few_images

from care_sweep.client import Client
from care_sweep.run.holders import LEASE_SECONDS
from care_sweep.store import Store

from .promises import broken_promises, store_in
from .trials import document, listened
from .victims import Serving, Suspended, lifetimes

__all__ = ["suspension"]

_WAIT_SECONDS = 300.0
_NUM_EPOCHS = 60
"""Of a trial: the sweep must still run when the driver wakes up."""


def suspension(home: Path, chance: random.Random, num_trials: int) -> dict[str, Any]:
    """Stop a driver for three leases while another runner is there, and wake it; and again, with its runner.

    The other runner takes the sweep. A runner that is awake ends its driver that sleeps; one that sleeps too
    wakes beside it, and what the driver writes then is refused.
    """
    shape = {"num_trials": num_trials, "epochs": _NUM_EPOCHS}
    asked = document(cut_few_images(home / "data" / "few"), shape)
    with (
        Serving(home, "--num-cpus", "4") as instance,  # room for the trials of both
        Client(instance.url) as client,
        store_in(home) as store,
    ):
        found = [
            _slept(asleep, asked, chance.uniform(0, 3), home, instance, client, store)
            for asleep in (("driver",), ("runner", "driver"))
        ]
    return {
        "suspensions": len(found),
        "suspended_seconds": 3 * LEASE_SECONDS,
        "stale_drivers_ended": sum(one["ended"] for one in found),
        "stale_drivers_refused": sum(one["refused"] for one in found),
        "stale_writes_accepted": sum(len(one["stale"]) for one in found),
        "broken": [problem for one in found for problem in one["broken"]],
    }


def _slept(
    asleep: Sequence[str],
    asked: Mapping[str, Any],
    delay_seconds: float,
    home: Path,
    instance: Serving,
    client: Client,
    store: Store,
) -> dict[str, Any]:
    sweep_id = client.submit(asked)["id"]
    told: list[dict[str, Any]] = []
    reader = listened(client, sweep_id, told)
    _until(lambda: store.last_measurement(sweep_id) > 0)
    time.sleep(delay_seconds)
    (driver,) = lifetimes(instance.pids("driver"))
    sleep = Suspended(home, *asleep)  # of whom there is one yet
    with instance.another_runner():
        with sleep:
            first = store.sweep(sweep_id).fencing_token
            time.sleep(3 * LEASE_SECONDS)
            is_taken = store.sweep(sweep_id).fencing_token > first
            measured = store.last_measurement(sweep_id)
            is_ended = driver not in lifetimes([driver[0]])
        _until(lambda: store.last_measurement(sweep_id) > measured or store.state(sweep_id).is_terminal)
        goes_on = store.last_measurement(sweep_id) > measured
    client.wait(sweep_id, timeout=2 * _WAIT_SECONDS)
    reader.join(30)
    log = (home / "storage" / "sweeps" / sweep_id / "driver.log").read_text()
    refused, stale = log.count(f"no longer held with token {first}\n"), list(_stale_writes(store, sweep_id))
    broken = [*stale, *broken_promises(store, home / "storage", sweep_id, told)]
    is_tried = refused > 0 if "runner" in asleep else is_ended
    if not (is_taken and goes_on and is_tried):
        broken.append(
            f"{sweep_id}: taken over: {is_taken}, went on beside the woken: {goes_on}, ended by its runner: "
            f"{is_ended}, refusals of what it wrote: {refused}; asleep were {', '.join(asleep)}"
        )
    return {"ended": is_ended, "refused": refused, "stale": stale, "broken": broken}


def _stale_writes(store: Store, sweep_id: str) -> Iterator[str]:
    """What an attempt measured after a later one of its trial had begun."""
    for trial in store.trials(sweep_id).items:
        began = {attempt.attempt: attempt.started_at for attempt in store.attempts(sweep_id, trial.number)}
        for row in store.measurements(sweep_id, trial.number):
            if any(number > row.attempt and at < row.recorded_at for number, at in began.items()):
                name = f"{sweep_id}, trial {trial.number}, attempt {row.attempt}"
                yield f"{name}: wrote epoch {row.epoch} after the next attempt had begun"


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
