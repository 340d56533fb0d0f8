"""Is anything lost when processes die at any instant? A real instance, killed at random, and its promises.

    python benchmarks/chaos.py [--directory chaos] [--seed 0] [--quick]

Three phases, each with an instance of its own below the directory; a phase that is done is not repeated.

submissions   sweeps are posted at 20 a second while the service is killed; each answer goes to a log first
trials        a sweep runs while its driver, a worker, Ray's raylet and its GCS are killed, start-up included
suspension    runner and driver are stopped for three leases, others take over, then they are woken

Afterwards the store is read directly. Prints JSON; exit status 1 where a promise was broken.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from few_images import cut_few_images
from victims import Serving, Suspended

from care_sweep.client import Client
from care_sweep.errors import ServiceError
from care_sweep.settings import Settings
from care_sweep.spec import TrialState
from care_sweep.store import Store, open_database

_SUBMISSIONS_A_SECOND = 20
_NUM_TRIALS, _NUM_EPOCHS = 6, 12
_RECOVERY_SECONDS = 300.0  # more is a broken promise in itself; how long it took is told
_LEASE_SECONDS = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("chaos"), help="homes, logs and results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few kills of each kind, in three minutes")
    arguments = parser.parse_args()
    service_kills = 5 if arguments.quick else 50
    kills = {"driver": 1, "worker": 1, "raylet": 1, "gcs_server": 1}
    if not arguments.quick:
        kills = {"driver": 20, "worker": 20, "raylet": 20, "gcs_server": 5}
    phases: dict[str, Callable[[Path, random.Random], dict[str, Any]]] = {
        "submissions": lambda home, chance: _submissions(home, chance, service_kills),
        "trials": lambda home, chance: _trials(home, chance, kills),
    }
    if not arguments.quick:
        phases["suspension"] = _suspension
    report = {}
    for name, phase in phases.items():
        result = arguments.directory / f"{name}.json"
        if not result.exists():
            home = arguments.directory / f"{name}-{time.time_ns()}"
            home.mkdir(parents=True)
            found = phase(home.absolute(), random.Random(f"{arguments.seed} {name}"))  # noqa: S311
            result.write_text(json.dumps(found, indent=2))
        report[name] = json.loads(result.read_text())
    print(json.dumps({"seed": arguments.seed, "quick": arguments.quick, **report}, indent=2))
    if any(report[name]["broken"] for name in report):
        sys.exit(1)


# --- submissions --------------------------------------------------------------------------------------------


def _submissions(home: Path, chance: random.Random, num_kills: int) -> dict[str, Any]:
    """Post while the service dies and is started again; compare its answers with the store."""
    answered: dict[str, str] = {}
    done = threading.Event()
    with Serving(home, "--num-cpus", "1") as instance:
        posters = [
            threading.Thread(target=_post, args=(instance.url, number, answered, done)) for number in range(4)
        ]
        for poster in posters:
            poster.start()
        for _ in range(num_kills):
            time.sleep(chance.uniform(0.1, 3.0))
            instance.kill("service")
        time.sleep(3)
        done.set()
        for poster in posters:
            poster.join()
    with _store(home) as store:
        stored = [(s.name, s.id) for s in _all_sweeps(store)]
    by_name = Counter(name for name, _ in stored)
    lost = [name for name, sweep_id in answered.items() if (name, sweep_id) not in set(stored)]
    doubled = [name for name, count in by_name.items() if count > 1]
    broken = [f"lost: {name}" for name in lost] + [f"doubled: {name}" for name in doubled]
    if len(answered) < num_kills:
        broken.append(f"{len(answered)} sweeps were acknowledged: nothing was tried")
    return {
        "kills_of_the_service": num_kills,
        "acknowledged": len(answered),
        "lost": len(lost),
        "doubled": len(doubled),
        "broken": broken,
    }


def _post(url: str, poster: int, answered: dict[str, str], done: threading.Event) -> None:
    """One client of four: a sweep at a time, the same key until it is answered."""
    number = 0
    with Client(url) as client:
        while not done.is_set():
            name, began = f"poster-{poster}-sweep-{number}", time.monotonic()
            document = {"name": name, "space": "cifar10-mini", "num_trials": 1}
            try:
                answered[name] = client.submit(document, idempotency_key=name)["id"]
                number += 1
            except ServiceError as error:
                if error.status not in (None, 503):  # it was down for longer than the client tries
                    raise
            time.sleep(max(0.0, 4 / _SUBMISSIONS_A_SECOND - (time.monotonic() - began)))


# --- trials -------------------------------------------------------------------------------------------------


def _trials(home: Path, chance: random.Random, kills: dict[str, int]) -> dict[str, Any]:
    """Kill what a sweep needs, while it runs; then compare what was told with what is stored."""
    victims = [victim for victim, count in kills.items() for _ in range(count)]
    chance.shuffle(victims)
    dataset = cut_few_images(home / "data" / "few")
    told: dict[str, list[dict[str, Any]]] = {}
    recoveries: dict[str, list[float]] = {victim: [] for victim in kills}
    with Serving(home, "--num-cpus", "2") as instance, Client(instance.url) as client:
        sweep_id = ""
        for victim in victims:
            if not sweep_id or client.sweep(sweep_id)["state"] not in ("QUEUED", "RUNNING"):
                sweep_id = client.submit(_document(dataset, len(told)))["id"]
                told[sweep_id] = []
                threading.Thread(target=_listen, args=(client, sweep_id, told[sweep_id]), daemon=True).start()
            time.sleep(chance.uniform(0.0, 12.0))
            if not instance.kill(victim):
                continue  # it was not there at that instant: the sweep was between two of them
            recoveries[victim].append(_seconds_until_progress(client, sweep_id))
        for one in told:
            client.wait(one, timeout=1200)
        time.sleep(2)
    with _store(home) as store:
        broken = [problem for one in told for problem in _promises(store, one, told[one])]
        trained = sum(_epochs_trained(home, one) for one in told)
        stored = sum(len(store.measurements(one)) for one in told)
    return {
        "kills": {victim: len(seconds) for victim, seconds in recoveries.items()},
        "most_seconds_to_progress": {v: round(max(s), 1) for v, s in recoveries.items() if s},
        "sweeps": len(told),
        "measurements": stored,
        "epochs_trained_again": trained - stored,
        "broken": broken,
    }


def _document(dataset: str, number: int) -> dict[str, Any]:
    parameters = {"temperature": {"type": "float", "low": 0.1, "high": 0.5}}
    fixed = {"dataset": dataset, "encoder": "resnet_tiny", "epochs": _NUM_EPOCHS, "batch_size": 32}
    fixed |= {"num_splits": 4, "probe_epochs": 5, "knn_neighbors": 20}
    space = {"parameters": parameters, "fixed": fixed}
    return {
        "name": f"chaos {number}",
        "space": space,
        "num_trials": _NUM_TRIALS,
        "early_stopping": "none",
        "resources": {"cpus_per_trial": 1},
    }


def _listen(client: Client, sweep_id: str, told: list[dict[str, Any]]) -> None:
    """What the service tells of a sweep, as a reader that never goes away gets it."""
    while True:
        try:
            after = told[-1]["sequence"] if told else 0
            told.extend(dict(event) for event in client.events(sweep_id, after=after))
            return
        except ServiceError:
            time.sleep(0.5)


def _seconds_until_progress(client: Client, sweep_id: str) -> float:
    """Until the next measurement is stored, or the sweep has ended."""
    began = time.monotonic()
    before = _num_measured(client, sweep_id)
    while time.monotonic() - began < _RECOVERY_SECONDS:
        sweep = client.sweep(sweep_id)
        if sweep["state"] not in ("QUEUED", "RUNNING") or _num_measured(client, sweep_id) > before:
            break
        time.sleep(0.3)
    return time.monotonic() - began


def _num_measured(client: Client, sweep_id: str) -> int:
    return sum(trial["last_epoch"] for trial in client.trials(sweep_id))


def _promises(store: Store, sweep_id: str, told: list[dict[str, Any]]) -> Iterator[str]:
    """Every promise about a sweep that does not hold."""
    sweep, trials = store.sweep(sweep_id), store.trials(sweep_id).items
    if sweep.state != "SUCCEEDED":
        yield f"{sweep_id} ended as {sweep.state}: {sweep.reason}: {sweep.message}"
    if [trial.number for trial in trials] != list(range(_NUM_TRIALS)):
        yield f"{sweep_id} has trials {[trial.number for trial in trials]}"
    measured = {(m.trial_number, m.epoch): m.metrics for m in store.measurements(sweep_id)}
    for trial in trials:
        if trial.state is not TrialState.COMPLETE:
            yield f"{sweep_id}: trial {trial.number} is {trial.state}: {trial.reason}: {trial.message}"
        epochs = sorted(epoch for number, epoch in measured if number == trial.number)
        if epochs != list(range(1, _NUM_EPOCHS + 1)):
            yield f"{sweep_id}: trial {trial.number} has epochs {epochs}"
    sequences = [event["sequence"] for event in told]
    stored = [event.sequence for event in store.events(sweep_id, limit=100_000)]
    if sequences != stored:
        yield f"{sweep_id}: {len(sequences)} events were told, {len(stored)} are stored, or in another order"
    for event in told:
        data = event["data"]
        if (
            event["kind"] == "measurement"
            and measured.get((data["number"], data["epoch"])) != data["metrics"]
        ):
            yield f"{sweep_id}: what was told of trial {data['number']}, epoch {data['epoch']} is not stored"


def _epochs_trained(home: Path, sweep_id: str) -> int:
    """How many epochs ended on a worker, whoever heard of them: from the attempts' logs."""
    logs = (home / "storage" / "sweeps" / sweep_id).rglob("log.txt")
    return sum(line.count(" INFO epoch ") for log in logs for line in log.read_text().splitlines())


# --- suspension ---------------------------------------------------------------------------------------------


def _suspension(home: Path, chance: random.Random) -> dict[str, Any]:
    """A driver that sleeps past its lease must find, once awake, that it may write nothing."""
    dataset = cut_few_images(home / "data" / "few")
    with Serving(home, "--num-cpus", "2") as instance, Client(instance.url) as client:
        sweep_id = client.submit(_document(dataset, 0))["id"]
        while _num_measured(client, sweep_id) < 3:
            time.sleep(0.5)
        time.sleep(chance.uniform(0, 3))
        with Suspended(home, "care_sweep.run.runner", "care_sweep.run.driver"), instance.another_runner():
            time.sleep(3 * _LEASE_SECONDS)
        client.wait(sweep_id, timeout=600)
        told = [dict(event) for event in client.events(sweep_id)]
    with _store(home) as store:
        broken = list(_promises(store, sweep_id, told))
        token = store.sweep(sweep_id).fencing_token
    if token < 2:
        broken.append("nobody took the sweep over: nothing was tried")
    return {"suspended_seconds": 3 * _LEASE_SECONDS, "fencing_token": token, "broken": broken}


# --- the store, read directly -------------------------------------------------------------------------------


@contextmanager
def _store(home: Path) -> Iterator[Store]:
    engine = open_database(Settings.from_environment({"CARE_SWEEP_HOME": str(home)}).database_url)
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def _all_sweeps(store: Store) -> Iterator[Any]:
    token = None
    while True:
        page = store.sweeps(page_size=1000, page_token=token)
        yield from page.items
        if page.next_token is None:
            return
        token = page.next_token


if __name__ == "__main__":
    main()
