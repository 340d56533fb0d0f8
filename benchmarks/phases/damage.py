"""Is a damaged checkpoint ever handed out, opened, or trained on? Bits flipped and ends cut off."""

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from few_images import cut_few_images

import care_sweep
from care_sweep.client import Client
from care_sweep.errors import CheckpointError, ServiceError
from care_sweep.layout import trial_prefix
from care_sweep.learn.state import opened

from .promises import store_in
from .trials import document
from .victims import Serving

__all__ = ["damage"]


def damage(home: Path, chance: random.Random, num_damages: int) -> dict[str, Any]:
    """Damage what sweeps have stored, a third of the times each: a checkpoint that is asked of the service,
    one that is opened, and the training state that a paused sweep would go on from.
    """
    dataset = cut_few_images(home / "data" / "few")
    with Serving(home, "--num-cpus", "1") as instance, Client(instance.url) as client:
        done = client.submit(document(dataset, {"num_trials": 1, "epochs": 1}))["id"]
        client.wait(done, timeout=300)
        begun = client.submit(document(dataset, {"num_trials": 1, "epochs": 1000}))["id"]
        with store_in(home) as store:
            while not store.last_measurement(begun):
                time.sleep(0.2)
            client.pause(begun)
            while store.sweep(begun).lease_owner is not None:
                time.sleep(0.2)
        folders = [home / "storage" / trial_prefix(sweep, 0) / "attempt-1" for sweep in (done, begun)]
        checkpoint, state = folders[0] / "checkpoint.tar", max(folders[1].glob("state-*.pt"))
        target = home / "downloaded.tar"
        uses: Mapping[str, tuple[Path, Callable[[], object]]] = {
            "downloads": (checkpoint, lambda: client.download(done, target)),
            "openings": (checkpoint, lambda: care_sweep.load(checkpoint)),
            "resumes": (state, lambda: opened(state, torch.device("cpu"))),
        }
        caught, broken = dict.fromkeys(uses, 0), []
        for number in range(num_damages):
            name = list(uses)[number % len(uses)]
            path, use = uses[name]
            whole = path.read_bytes()
            how = _damaged(path, whole, chance)
            try:
                use()
            except (CheckpointError, ServiceError):
                caught[name] += 1
            else:
                broken.append(f"{path.name}, {how}: not caught by one of the {name}")
            path.write_bytes(whole)
        for _, use in uses.values():
            use()  # whole again, it is accepted
        client.cancel(begun)
    return {"damages": num_damages, "caught": sum(caught.values()), **caught, "broken": broken}


def _damaged(path: Path, whole: bytes, chance: random.Random) -> str:
    place = chance.randrange(len(whole))
    if chance.random() < 0.5:
        path.write_bytes(whole[:place])
        return f"cut after {place} bytes"
    bit = chance.randrange(8)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    return f"bit {bit} of byte {place} flipped"
