"""Does it stand many trials, many sweeps, many readers? A real service, runner and Ray; trials that sleep.

    python benchmarks/scale.py [--directory scale] [--trials 10000] [--sweeps 100] [--readers 1000]

trials    a sweep of so many trials (two epochs of 10 ms, four at once): the memory of its drivers, how often
          one handed over, and the time of each page of the API meanwhile
sweeps    so many are submitted at once where a runner drives 8: the rest wait, all end
readers   so many follow the events of one sweep: the service's memory over what it had before

Stop it whenever you like and give the same command again: a phase that is done is not repeated. Prints JSON;
exit status 1 where a promise was broken.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import httpx2
from drivers import driving_children
from nodes import SimulatedCluster, sleeping_sweep
from phases.kept import kept
from serving import Service, allow_files, service_on
from sleeping import driver_command

from care_sweep.settings import Settings
from care_sweep.spec import SweepState
from care_sweep.store import Store, open_database

_MOST_DRIVER_BYTES = 400 * 2**20
_MOST_PAGE_MS = 200.0
_MOST_READERS_BYTES = 80 * 2**20
_NUM_ACTIVE = 8
_LOOK_SECONDS = 1.0
_PAGES_SECONDS = 5.0


@contextmanager
def installation(home: Path, **cluster: int) -> Iterator[tuple[Service, Store, Any]]:
    """A service, its store and a runner whose drivers' trials sleep, on one simulated node."""
    os.environ |= {"CARE_SWEEP_HOME": str(home), "CARE_SWEEP_MAX_ACTIVE_SWEEPS": str(_NUM_ACTIVE)}
    ray = SimulatedCluster(home, 1, cluster)
    from care_sweep.run.runner import Runner  # with it Ray, which must find the environment set

    settings = Settings.from_environment()
    try:
        with service_on(home / "service", settings.database_url) as service:
            store = Store(open_database(settings.database_url))
            runner = Runner(settings, store, driver=driver_command(0.01))
            try:
                yield service, store, runner
            finally:
                runner.close()
    finally:
        ray.end()


# --- phases -------------------------------------------------------------------------------------------------


def trials(home: Path, num_trials: int) -> dict[str, Any]:
    """Run one long sweep."""
    peaks: dict[int, int] = {}
    pages: dict[str, list[float]] = defaultdict(list)
    with installation(home, num_cpus=4) as (service, store, runner), httpx2.Client() as http:
        sweep_id = store.submit(sleeping_sweep(num_trials, early_stopping="none"))[0].id
        began, asked_at = time.monotonic(), 0.0
        while not store.state(sweep_id).is_terminal:
            runner.step()
            for pid in driving_children(os.getpid(), "sleeping.py"):
                peaks[pid] = max(peaks.get(pid, 0), _peak_bytes(pid))
            if time.monotonic() - asked_at > _PAGES_SECONDS:
                asked_at = time.monotonic()
                for name, path in _pages(sweep_id, store).items():
                    pages[name].append(_milliseconds(lambda path=path: http.get(service.address + path)))
            time.sleep(_LOOK_SECONDS)
        seconds = time.monotonic() - began
        sweep = store.sweep(sweep_id)
        numbers = [trial.number for trial in store.trials(sweep_id).items]
        handed_over = {
            attempt.finished_at
            for number in numbers
            for attempt in store.attempts(sweep_id, number)
            if attempt.reason == "handed over"
        }
    p95 = {name: round(quantiles(times, n=20, method="inclusive")[18], 1) for name, times in pages.items()}
    most = max(peaks.values())
    broken = []
    if numbers != list(range(num_trials)) or set(sweep.trial_counts) != {"COMPLETE"}:
        broken.append(f"{len(numbers)} of {num_trials} trials: {dict(sweep.trial_counts)}")
    if most > _MOST_DRIVER_BYTES:
        broken.append(f"a driver held {most / 2**20:.0f} MB")
    broken += [f"{name}: p95 {time:.0f} ms" for name, time in p95.items() if time > _MOST_PAGE_MS]
    return {
        "trials": len(numbers),
        "seconds_a_trial": round(seconds / num_trials, 3),
        "drivers": len(peaks),
        "trials_handed_over": len(handed_over),
        "most_driver_mb": [round(peak / 2**20) for peak in peaks.values()],
        "p95_ms": p95,
        "num_asked": {name: len(times) for name, times in pages.items()},
        "broken": broken,
    }


def sweeps(home: Path, num_sweeps: int) -> dict[str, Any]:
    """Submit many at once."""
    most_active = 0
    with installation(home, num_cpus=4) as (service, store, runner), httpx2.Client() as http:
        document = sleeping_sweep(2).model_dump(mode="json")
        document["early_stopping"] = "none"
        document["space"]["fixed"]["dataset"] = "cifar10-mini"
        statuses = [
            http.post(f"{service.address}/v1/sweeps", json=document).status_code for _ in range(num_sweeps)
        ]
        began = time.monotonic()
        while True:
            runner.step()
            counts: dict[str, int] = defaultdict(int)
            for sweep in store.sweeps(page_size=num_sweeps).items:
                counts[sweep.state] += 1
            most_active = max(most_active, counts[SweepState.RUNNING])
            if not counts[SweepState.QUEUED] and not counts[SweepState.RUNNING]:
                break
            time.sleep(_LOOK_SECONDS / 2)
        seconds = time.monotonic() - began
    broken = []
    if statuses != [201] * num_sweeps or counts != {SweepState.SUCCEEDED: num_sweeps} | dict.fromkeys(
        (SweepState.QUEUED, SweepState.RUNNING), 0
    ):
        broken.append(f"accepted {statuses.count(201)}, ended as {dict(counts)}")
    if most_active > _NUM_ACTIVE:
        broken.append(f"{most_active} were active at once")
    return {
        "sweeps": num_sweeps,
        "most_active": most_active,
        "seconds_in_all": round(seconds),
        "broken": broken,
    }


def readers(home: Path, num_readers: int) -> dict[str, Any]:
    """Follow one sweep's events by many connections."""
    allow_files(num_readers + 200)
    with service_on(home / "service", f"sqlite:///{home / 'store.db'}") as service:
        store = Store(open_database(f"sqlite:///{home / 'store.db'}"))
        sweep_id = store.submit(sleeping_sweep(4))[0].id
        _milliseconds(lambda: httpx2.get(f"{service.address}/v1/sweeps/{sweep_id}"))
        time.sleep(2)
        before = service.resident_bytes
        told, most = asyncio.run(_follow(service, store, sweep_id, num_readers))
    over = most - before
    broken = [f"{num_readers - told} readers were not told"] if told != num_readers else []
    if over > _MOST_READERS_BYTES:
        broken.append(f"they take {over / 2**20:.0f} MB")
    return {
        "readers": num_readers,
        "told": told,
        "idle_mb": round(before / 2**20),
        "over_idle_mb": round(over / 2**20),
        "broken": broken,
    }


async def _follow(service: Service, store: Store, sweep_id: str, num_readers: int) -> tuple[int, int]:
    """How many were told of an event that came once all were there, and the service's most memory."""
    host, port = urlsplit(service.address).hostname, urlsplit(service.address).port
    request = f"GET /v1/sweeps/{sweep_id}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    streams = []
    for _ in range(num_readers):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        streams.append((reader, writer))
    for reader, _ in streams:
        await reader.readuntil(b"QUEUED")
    most = service.resident_bytes
    for _ in range(20):
        await asyncio.sleep(1)
        most = max(most, service.resident_bytes)
    store.control.cancel(sweep_id)
    answers = await asyncio.gather(*(_is_told(reader) for reader, _ in streams))
    most = max(most, service.resident_bytes)
    for _, writer in streams:
        writer.close()
    return sum(answers), most


async def _is_told(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.readuntil(b"CANCELLED"), 60)
    except (TimeoutError, asyncio.IncompleteReadError):
        return False
    return True


# --- what is looked at --------------------------------------------------------------------------------------


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has held."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _pages(sweep_id: str, store: Store) -> Mapping[str, str]:
    here, last = f"/v1/sweeps/{sweep_id}", sum(store.sweep(sweep_id).trial_counts.values())
    return {
        "sweeps": "/v1/sweeps",
        "sweep": here,
        "trials, first page": f"{here}/trials",
        "trials, last page": f"{here}/trials?page_token={max(0, last - 51)}",
        "a trial": f"{here}/trials/0" if last else here,
    }


def _milliseconds(ask: Callable[[], Any]) -> float:
    began = time.perf_counter()
    ask().raise_for_status()
    return 1000 * (time.perf_counter() - began)


def _apart(phase: Callable[[Path, int], dict[str, Any]], number: int) -> Callable[[Path], dict[str, Any]]:
    """A phase in a process of its own, for Ray keeps the first cluster's token for as long as one lives."""

    def run(home: Path) -> dict[str, Any]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(phase, home, number).result()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("scale"), help="homes, logs and results")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--readers", type=int, default=1000)
    told = parser.parse_args()
    phases = ((readers, told.readers), (sweeps, told.sweeps), (trials, told.trials))
    report = {
        phase.__name__: kept(told.directory / f"{phase.__name__}-{number}.json", _apart(phase, number))
        for phase, number in phases
    }
    print(json.dumps(report, indent=2))
    if any(phase["broken"] for phase in report.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
