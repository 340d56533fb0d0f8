"""How many views a second does one thread make: ours, torchvision's of PIL images, and its batched v2?

    PYTHONPATH=. python benchmarks/augment.py [--batch-size 256] [--rounds 7]

ours      `care_sweep.learn.views`, drawing and applying: an augmentation of its own for each view
pil       torchvision's transforms of one PIL image after the other, as in the published loader
batched   torchvision's v2 transforms of a uint8 batch: one augmentation for all its images

All crop, flip, jitter, gray, blur and normalise images of 32 pixels, in a process that keeps the memory that
they free, as those of trials do. Prints one table, ratios against pil.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from our_trial import random_images
from PIL import Image
from published_step import MEAN, STD, pil_views
from side_by_side import Race, Turn, machine, spread, table
from step_contenders import batched_transform

from care_sweep.learn.randomness import generator
from care_sweep.learn.views import apply_views, draw_views, normalise
from care_sweep.memory import keep_freed_memory

_SIDE = 32
_PIL = "pil"


class Augmentation:
    """One way of making a view of each of a batch's images; a turn makes some batches of views."""

    def __init__(self, make: Callable[[], Any], batch_size: int, times: int) -> None:
        self._make, self._batch_size, self._times = make, batch_size, times
        self.turn()

    def turn(self) -> Turn:
        started = time.perf_counter()
        for _ in range(self._times):
            self._make()
        return Turn(self._times * self._batch_size, time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="a contender, set-up included")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    race = Race(_builders(random_images(arguments.batch_size, _SIDE)), arguments.seconds)
    for _ in range(arguments.rounds):
        race.round()
    contenders = {name: outcome.document() for name, outcome in race.outcomes.items()}
    report = {"batch_size": arguments.batch_size, "machine": machine(torch.device("cpu"))}
    report |= {"contenders": contenders}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table([_row(name, document, contenders[_PIL]) for name, document in contenders.items()]))


def _builders(images: torch.Tensor) -> dict[str, Callable[[], Augmentation]]:
    pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
    num_images, source = len(images), generator(0, "views")
    pil, batched = pil_views(_SIDE), batched_transform(_SIDE)

    def ours() -> torch.Tensor:
        parameters = draw_views(num_images, (_SIDE, _SIDE), 1.0, source)
        views = apply_views(images, parameters)
        return normalise(views, MEAN, STD, out=views)

    return {
        "ours": lambda: Augmentation(ours, num_images, 10),
        _PIL: lambda: Augmentation(lambda: [pil(picture) for picture in pictures], num_images, 1),
        "batched": lambda: Augmentation(lambda: batched(images), num_images, 20),
    }


def _row(name: str, document: dict[str, Any], pil: dict[str, Any]) -> dict[str, str]:
    rates = document["rate"], pil["rate"]
    ratio = "-" if None in rates else f"{rates[0]['median'] / rates[1]['median']:.1f}x"
    return {"augmentation": name, "views/s, one thread": spread(document["rate"]), "against PIL": ratio}


if __name__ == "__main__":
    main()
