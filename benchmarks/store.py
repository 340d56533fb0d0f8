"""How fast is the store? Durable submissions a second, and the time of each page of a large sweep.

    python benchmarks/store.py [--directory store] [--seed 0] [--quick]

On SQLite and on PostgreSQL, each under a real `python -m service` of its own:

submissions   clients that keep their connections post sweeps, each with a new Idempotency-Key; an answer 201
              is durable. Before and after each number of clients the same database is asked how many single
              commits of one such row it makes a second: disks differ, and one disk differs with the minute,
              so that their ratio says more than either.
pages         of sweeps of 100,000 measurements, as one reader gets them

Prints JSON on stdout and a table on stderr; exit status 1 where an acknowledged sweep is not in the store.
The service's CPU time is read from /proc.
"""

import argparse
import asyncio
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import mean, quantiles
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx2
from databases import KINDS, database
from filled import fill
from serving import Service, allow_files, service_on
from sqlalchemy import Engine

from care_sweep.search.catalog import load_space, resolve_sweep
from care_sweep.spec import SweepState
from care_sweep.store import Store, open_database

_NUM_EVENTS = 500  # as many as the service reads of the store at a time


@dataclass(frozen=True)
class Size:
    """How much is measured. `sweeps` are (trials, epochs of each); no kind of page is asked for longer than
    `seconds`, nor more often than `num_requests`."""

    clients: Sequence[int]
    seconds: float
    sweeps: Sequence[tuple[int, int]]
    num_requests: int


_WHOLE = Size((1, 10, 100, 1000), 10.0, ((1_000, 100), (10_000, 10)), 200)
_QUICK = Size((1, 10), 1.0, ((20, 50),), 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, help="on the disk to measure; by default a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    arguments = parser.parse_args()
    if arguments.directory:
        arguments.directory.mkdir(parents=True, exist_ok=True)
    size = _QUICK if arguments.quick else _WHOLE
    allow_files(2 * max(size.clients) + 100)
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    report: dict[str, Any] = {"seed": arguments.seed, "quick": arguments.quick, "machine": machine}
    with TemporaryDirectory(prefix="care-sweep-store-", dir=arguments.directory) as name:
        folder = Path(name).absolute()
        for kind in KINDS:
            with database(kind, folder) as url, service_on(folder / f"home-{kind}", url) as service:
                engine = open_database(url)
                report[kind] = _measure(Store(engine), service, size, arguments.seed)
                engine.dispose()
    print(json.dumps(report, indent=2))
    print(_table(report), file=sys.stderr)
    if any(report[kind]["lost"] for kind in KINDS):
        sys.exit(1)


def _measure(store: Store, service: Service, size: Size, seed: int) -> dict[str, Any]:
    submissions, acknowledged = _submissions(store.engine, service, size)
    lost = len(set(acknowledged) - _stored(store))
    pages = {}
    for num_trials, num_epochs in size.sweeps:
        chance = Random(f"{seed} {num_trials}")  # noqa: S311
        sweep_id = _filled(store, num_trials, num_epochs, chance)
        name = f"{num_trials} trials of {num_epochs} epochs"
        pages[name] = _pages(store, service, sweep_id, num_trials, chance, size)
    return {"submissions": submissions, "lost": lost, "pages": pages}


# --- submissions --------------------------------------------------------------------------------------------

_Answers = list[tuple[float, int, bytes]]
"""Seconds, status and body of each."""


def _submissions(
    engine: Engine, service: Service, size: Size
) -> tuple[Sequence[dict[str, Any]], Sequence[str]]:
    """What each number of clients saw, and the ids that were answered with 201."""
    found: list[dict[str, Any]] = []
    acknowledged: list[str] = []
    before = _commits_a_second(engine, size.seconds / 4)
    for num_clients in size.clients:
        answers: _Answers = []
        cpu_seconds = service.cpu_seconds
        seconds = asyncio.run(_post_together(service.address, num_clients, size.seconds, answers))
        cpu_seconds = service.cpu_seconds - cpu_seconds
        after = _commits_a_second(engine, size.seconds / 4)
        times = [took for took, status, _ in answers if status == 201]
        acknowledged += [json.loads(body)["id"] for _, status, body in answers if status == 201]
        rate, commits = len(times) / seconds, mean([before, after])
        one = {
            "clients": num_clients,
            "a_second": round(rate, 1),
            "single_commits_a_second": round(commits, 1),
            "ratio": round(rate / commits, 2),
            "cpu_ms": round(1000 * cpu_seconds / len(answers), 2),
            "refused": len(answers) - len(times),
        }
        found.append({**one, **_milliseconds(times)})
        before = after
    return found, acknowledged


def _commits_a_second(engine: Engine, seconds: float) -> float:
    """Single commits of a row as large as a sweep's, one after the other, with the store's durability."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS yardstick (document TEXT)")
    row = "x" * len(load_space("cifar10-mini").model_dump_json())
    driver = engine.raw_connection()
    try:
        cursor, number, began = driver.cursor(), 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            cursor.execute(f"INSERT INTO yardstick VALUES ('{row}')")  # noqa: S608  (row: ours)
            driver.commit()  # PostgreSQL's; SQLite has committed already
            number += 1
        return number / (time.perf_counter() - began)
    finally:
        driver.close()


async def _post_together(address: str, num_clients: int, seconds: float, answers: _Answers) -> float:
    """Each client posts one sweep after the other until the time is up, and two at least; the seconds until
    the last answer."""
    began = time.perf_counter()
    await asyncio.gather(*(_post(address, one, began + seconds, answers) for one in range(num_clients)))
    return time.perf_counter() - began


async def _post(address: str, client: int, deadline: float, answers: _Answers) -> None:
    """One client, in plain HTTP/1.1: a library would take a good part of the service's two cores."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    reader, writer = await asyncio.open_connection(host, port)
    num_posted = 0
    while time.perf_counter() < deadline or num_posted < 2:
        num_posted += 1
        body = json.dumps({"name": f"client {client}", "space": "cifar10-mini", "num_trials": 4}).encode()
        head = (
            f"POST /v1/sweeps HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Idempotency-Key: {secrets.token_hex(16)}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().splitlines()
        length = next(int(field.partition(":")[2]) for field in fields if field.startswith("content-length"))
        content = await reader.readexactly(length)
        answers.append((time.perf_counter() - began, int(status.split()[1]), content))
    writer.close()
    await writer.wait_closed()


# --- pages --------------------------------------------------------------------------------------------------


def _filled(store: Store, num_trials: int, num_epochs: int, chance: Random) -> str:
    """The id of a new sweep that has ended."""
    space = load_space("cifar10-mini").model_dump(mode="json")
    space["fixed"]["epochs"] = num_epochs
    spec = resolve_sweep({"name": "filled", "space": space, "num_trials": num_trials})
    lease = fill(store, spec, num_trials, chance)
    lease.finish_sweep(SweepState.SUCCEEDED)
    return lease.sweep_id


def _pages(
    store: Store, service: Service, sweep_id: str, num_trials: int, chance: Random, size: Size
) -> dict[str, dict[str, float]]:
    """Milliseconds from a request to the last byte of its answer, by what is asked for."""
    here = f"/v1/sweeps/{sweep_id}"
    first, last = store.events(sweep_id, limit=1)[0].sequence, store.last_measurement(sweep_id)

    def trial() -> int:
        return chance.randrange(num_trials)

    asked: dict[str, Callable[[], str]] = {
        "100 trials": lambda: f"{here}/trials?page_token={trial()}",
        "1000 trials": lambda: f"{here}/trials?page_size=1000&page_token={trial()}",
        "no trial that failed": lambda: f"{here}/trials?state=FAILED",
        "a trial": lambda: f"{here}/trials/{trial()}",
        "its measurements": lambda: f"{here}/trials/{trial()}/measurements",
        "the sweep": lambda: here,
        "50 sweeps": lambda: "/v1/sweeps",
        "best": lambda: f"{here}/best",
        f"{_NUM_EVENTS} events": lambda: f"{here}/events?after={chance.randrange(first, last)}",
    }
    found = {}
    with httpx2.Client(base_url=service.address, timeout=60) as http:
        for name, path in asked.items():
            cpu_seconds = service.cpu_seconds
            times = list(_seconds_of_each(http, path, size))
            cpu_seconds = service.cpu_seconds - cpu_seconds
            found[name] = {**_milliseconds(times), "cpu_ms": round(1000 * cpu_seconds / len(times), 1)}
    return found


def _seconds_of_each(http: httpx2.Client, path: Callable[[], str], size: Size) -> Iterator[float]:
    deadline = time.perf_counter() + size.seconds
    for number in range(size.num_requests):
        if number > 2 and time.perf_counter() > deadline:
            return
        asked = path()
        began = time.perf_counter()
        if "/events" in asked:
            _read_events(http, asked)
        else:
            http.get(asked).raise_for_status()
        yield time.perf_counter() - began


def _read_events(http: httpx2.Client, path: str) -> None:
    """So many, or all that are left; their connection is given up with the stream."""
    with http.sse(path) as source:
        for _ in zip(range(_NUM_EVENTS), source, strict=False):
            pass


# --- surroundings -------------------------------------------------------------------------------------------


def _stored(store: Store) -> set[str]:
    """The ids of all sweeps."""
    found: set[str] = set()
    token = None
    while True:
        page = store.sweeps(page_size=1000, page_token=token)
        found |= {sweep.id for sweep in page.items}
        token = page.next_token
        if token is None:
            return found


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=20, method="inclusive")
    return {"p50_ms": round(1000 * cuts[9], 1), "p95_ms": round(1000 * cuts[18], 1)}


def _table(report: dict[str, Any]) -> str:
    """Markdown: submissions a second (their ratio to single commits), milliseconds to an answer (of CPU)."""
    lines = [f"| | {' | '.join(KINDS)} |", "|---|" + "---|" * len(KINDS)]
    for found in zip(*(report[kind]["submissions"] for kind in KINDS), strict=True):
        cells = [f"{one['a_second']:.0f} ({one['ratio']:.2f}); {_times(one)}" for one in found]
        lines.append(f"| submissions, {found[0]['clients']} clients | {' | '.join(cells)} |")
    for sweep, pages in report[KINDS[0]]["pages"].items():
        for name in pages:
            times = [report[kind]["pages"][sweep][name] for kind in KINDS]
            cells = [_times(one) for one in times]
            lines.append(f"| {name}, {sweep} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _times(one: dict[str, float]) -> str:
    return f"{one['p50_ms']:.0f} / {one['p95_ms']:.0f} ({one['cpu_ms']:.1f})"


if __name__ == "__main__":
    main()
