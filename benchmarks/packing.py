"""What do several trials at once on one device give together, against one after another?

    PYTHONPATH=. python benchmarks/packing.py --device cuda --json packing.json
    PYTHONPATH=. python benchmarks/packing.py --device cpu --encoder resnet_tiny --trials 1 2 --images 1024

processes   a process each, which share the GPU by time, or have a share of the CPU's threads each
mps         the same as clients of NVIDIA's Multi-Process Service, which is started for it (GPU only)
streams     one process and one thread, which asks each trial for a step in turn, a CUDA stream each

As many trials as will ever run at once are built and warmed; then 1, 2, 4 and 8 of them run for the same
seconds, in turns, all starting at one instant. One after another, K trials have the images a second of one.
Prints one table; the JSON is written anew after each round. A way, or a number of trials, that fails, fails
alone.
"""

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from our_trial import our_config, random_dataset, random_images
from packed_streams import on_streams
from packs import Pack, under_mps
from side_by_side import Race, Turn, machine, spread, table

from care_sweep.learn.data import Dataset
from care_sweep.learn.packing import Order, PackError, Processes

_SIDE = 32
_WAYS: dict[str, Callable[[], AbstractContextManager[Pack]]] = {
    "processes": Processes,
    "mps": under_mps,
    "streams": on_streams,
}

Case = tuple[str, int]  # way and batch size


class Together:
    """The first trials of a pack, all at once; a turn's amount is the images of all."""

    def __init__(self, pack: Pack, num_trials: int, seconds: float) -> None:
        self._pack, self._num_trials, self._seconds = pack, num_trials, seconds

    def turn(self) -> Turn:
        rates = self._pack.run(self._num_trials, self._seconds)
        return Turn(sum(rates) * self._seconds, self._seconds)


def main() -> None:
    arguments = _arguments()
    report: dict[str, Any] = {"arguments": _plain(arguments), "packs": []}
    for way in arguments.ways:
        try:
            with _WAYS[way]() as pack:
                for batch_size in arguments.batch_sizes:
                    _measure(pack, (way, batch_size), arguments, report)
        except PackError as error:
            report["packs"].append({"way": way, "error": str(error)})
    report["machine"] = machine(torch.device(arguments.device))  # last: it makes a context on the GPU
    _keep(report, arguments.json)
    print(_table(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if on_gpu else "cpu")
    parser.add_argument("--ways", nargs="+", choices=list(_WAYS))
    parser.add_argument("--encoder", choices=["resnet18", "resnet50", "resnet_tiny"], default="resnet18")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 32])
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8], help="at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5120, help="of an epoch")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    if arguments.ways is None:
        arguments.ways = [way for way in _WAYS if way != "mps" or arguments.device == "cuda"]
    return arguments


def _measure(pack: Pack, case: Case, arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Add one pack at one batch size to the report, round by round."""
    way, batch_size = case
    config = our_config(arguments.encoder, batch_size, arguments.precision)
    order = Order(config, functools.partial(_random, arguments.images), arguments.device)
    pack.prepare(order, max(arguments.trials))
    race = Race({str(number): _builder(pack, number, arguments) for number in arguments.trials}, float("inf"))
    found: dict[str, Any] = {"way": way, "batch_size": batch_size}
    report["packs"].append(found)
    for _ in range(arguments.rounds):
        race.round()
        found["trials"] = {name: outcome.document() for name, outcome in race.outcomes.items()}
        _keep(report, arguments.json)


def _random(num_images: int) -> Dataset:
    return random_dataset(random_images(num_images, _SIDE))


def _builder(pack: Pack, number: int, arguments: argparse.Namespace) -> Callable[[], Together]:
    return lambda: Together(pack, number, arguments.seconds)


def _plain(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name != "json"}


def _keep(report: Mapping[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")


def _table(report: Mapping[str, Any]) -> str:
    rows, errors = [], []
    for pack in report["packs"]:
        if "error" in pack:
            errors.append(f"{pack['way']}: {pack['error']}")
            continue
        alone = pack["trials"].get("1", {}).get("rate")
        for number, document in pack["trials"].items():
            rows.append(_row(pack, number, document["rate"], alone))
            if document["error"] is not None:
                errors.append(f"{pack['way']}, {pack['batch_size']} images, {number}: {document['error']}")
    head = f"{report['arguments']['encoder']}, {report['machine']['device']}"
    return "\n\n".join([head, *([table(rows)] if rows else []), *errors])


def _row(
    pack: Mapping[str, Any], number: str, rate: Mapping[str, float] | None, alone: Mapping[str, float] | None
) -> dict[str, str]:
    return {
        "way": pack["way"],
        "images a step": str(pack["batch_size"]),
        "trials at once": number,
        "images/s together": spread(rate),
        "one after another": spread(alone),
        "gain": f"{rate['median'] / alone['median']:.2f}x" if rate and alone else "-",
    }


if __name__ == "__main__":
    main()
