"""Is an acknowledged sweep ever lost or doubled when the service is killed under load?"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from care_sweep.client import Client
from care_sweep.errors import ServiceError
from care_sweep.store import Store, SweepRecord

from .promises import store_in
from .victims import Serving

__all__ = ["submissions"]

_SUBMISSIONS_A_SECOND, _NUM_POSTERS = 20, 10
_ANSWER_SECONDS = 60.0


def submissions(home: Path, chance: random.Random, num_kills: int) -> dict[str, Any]:
    """Post while the service dies and is started again; compare its answers with the store.

    Each poster sends one sweep after the other, each under a key of its own until it is answered.
    """
    answered: dict[str, str] = {}
    done = threading.Event()
    num_unanswered = Counter[str]()
    with Serving(home, "--num-cpus", "1") as instance:
        posters = [
            threading.Thread(target=_post, args=(instance.url, number, answered, num_unanswered, done))
            for number in range(_NUM_POSTERS)
        ]
        began = time.monotonic()
        for poster in posters:
            poster.start()
        killed = [_killed(instance, chance, answered) for _ in range(num_kills)]
        time.sleep(5)
        done.set()
        seconds = time.monotonic() - began
        for poster in posters:
            poster.join()
    with store_in(home) as store:
        stored = [(sweep.name, sweep.id) for sweep in _all_sweeps(store)]
    lost = sorted(set(answered.items()) - set(stored))
    doubled = [name for name, count in Counter(name for name, _ in stored).items() if count > 1]
    broken = [f"lost: {name}" for name, _ in lost] + [f"doubled: {name}" for name in doubled]
    if not all(killed):
        broken.append(f"the service was there to be killed {sum(killed)} times of {num_kills}")
    if len(answered) < 5 * num_kills:
        broken.append(f"{len(answered)} sweeps were acknowledged: nothing was tried")
    return {
        "kills_of_the_service": sum(killed),
        "acknowledged": len(answered),
        "acknowledged_a_second": round(len(answered) / seconds, 1),
        "sent_again_after_no_answer": sum(num_unanswered.values()),
        "lost": len(lost),
        "doubled": len(doubled),
        "broken": broken,
    }


def _killed(instance: Serving, chance: random.Random, answered: Mapping[str, str]) -> bool:
    """One kill: three of four under load, once it has answered again, the others as it starts."""
    is_under_load, num_answered = chance.random() < 0.75, len(answered)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while is_under_load and len(answered) == num_answered and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(chance.uniform(0.0, 3.0))
    return instance.kill_once_there("service") is not None


def _post(
    url: str, poster: int, answered: dict[str, str], num_unanswered: Counter[str], done: threading.Event
) -> None:
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
                num_unanswered[name] += 1
            wait = _NUM_POSTERS / _SUBMISSIONS_A_SECOND - (time.monotonic() - began)
            time.sleep(max(0.0, wait))


def _all_sweeps(store: Store) -> Iterator[SweepRecord]:
    token = None
    while True:
        page = store.sweeps(page_size=1000, page_token=token)
        yield from page.items
        if page.next_token is None:
            return
        token = page.next_token
