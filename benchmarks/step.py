"""How fast is a training step of ours, against the published recipe's and against a cheap baseline?

    PYTHONPATH=. python benchmarks/step.py --device cuda --encoder resnet50 --json step.json
    PYTHONPATH=. python benchmarks/step.py --device cpu --batch-size 64 --steps 3

published        the recipe as its authors run it, rebuilt (published_step.py)
cheap            torchvision's v2 transforms of whole batches on the device (one augmentation a batch: less
                 work than the method asks for), one forward of all views, eager, channels last, float32
cheap-bfloat16   the same under autocast
ours-float32     a trial of this package, at that precision
ours-bfloat16

On a GPU float32 convolutions of the first two are what torch's default makes of them, TF32; ours are IEEE's.

The contenders take turns, and so do two ceilings: a matrix product (bfloat16 on a GPU, float32 on a CPU) and
a copy within the device's memory. The process keeps the memory that any of them frees, as those of trials
do. Prints one table; the JSON is written anew after each round. What it needs
of a machine is torch, torchvision, numpy, Pillow, pydantic, pyarrow and safetensors.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ceilings import MatrixProduct, MemoryCopy, Work, work_of_view
from host_and_device import look_at
from our_trial import random_images
from published_step import PlainModel
from side_by_side import Contender, Outcome, Race, machine, spread, table
from step_contenders import Cheap, Ours, Published

from care_sweep.memory import keep_freed_memory

_NUM_VIEWS = 4  # of an image in a step
_SIDE = 32
_MAX_WORKERS = 8  # of the published loader
_CONTENDERS = ("published", "cheap", "cheap-bfloat16", "ours-float32", "ours-bfloat16")
_PRODUCT, _COPY = "matrix product", "memory copy"


def main() -> None:
    arguments = _arguments()
    keep_freed_memory()
    device = torch.device(arguments.device)
    builders: dict[str, Callable[[], Contender]] = {
        _PRODUCT: lambda: MatrixProduct(device),
        _COPY: lambda: MemoryCopy(device),
    }
    builders |= {name: _builder(name, arguments, device) for name in arguments.contenders}
    head = {"arguments": _plain(arguments), "machine": machine(device)}
    work = work_of_view(PlainModel(arguments.encoder), (_SIDE, _SIDE))
    race = Race(builders, arguments.seconds)
    report: dict[str, Any] = {}
    for _ in range(arguments.rounds):
        race.round()
        report = {**head, **_findings(race.outcomes, work)}
        _keep(report, arguments.json)
    if device.type == "cuda":
        for name in arguments.contenders:
            _look_at(race, name, report["contenders"][name])
        _keep(report, arguments.json)
    print(_table(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if on_gpu else "cpu")
    parser.add_argument("--encoder", choices=["resnet18", "resnet50", "resnet_tiny"], default="resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--seconds", type=float, default=60.0, help="a contender, set-up included")
    parser.add_argument("--contenders", nargs="+", choices=_CONTENDERS, default=_CONTENDERS)
    parser.add_argument("--workers", type=int, help="of the published loader; a core each, at most 8")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    arguments.workers = arguments.workers or min(_MAX_WORKERS, os.cpu_count() or 1)
    return arguments


def _builder(name: str, arguments: argparse.Namespace, device: torch.device) -> Callable[[], Contender]:
    encoder, batch_size, num_steps = arguments.encoder, arguments.batch_size, arguments.steps
    images = random_images(num_steps * batch_size, _SIDE)
    kind, _, precision = name.partition("-")
    if kind == "published":
        return lambda: Published(
            encoder,
            images,
            batch_size=batch_size,
            num_steps=num_steps,
            turn_seconds=arguments.seconds / arguments.rounds,
            device=device,
            num_workers=arguments.workers,
        )
    if kind == "cheap":
        return lambda: Cheap(
            encoder,
            images,
            batch_size=batch_size,
            num_steps=num_steps,
            device=device,
            is_bfloat16=precision == "bfloat16",
        )
    return lambda: Ours(encoder, images, batch_size=batch_size, device=device, precision=precision)


def _plain(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name != "json"}


def _keep(report: Mapping[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")


# --- what was found -----------------------------------------------------------------------------------------


def _findings(outcomes: Mapping[str, Outcome], work: Work) -> dict[str, Any]:
    """Ceilings and contenders as documents."""
    ceilings = {name: outcomes[name].document() for name in (_PRODUCT, _COPY)}
    contenders = {name: outcome.document() for name, outcome in outcomes.items() if name not in ceilings}
    published = contenders.get("published", {}).get("rate")
    for name, document in contenders.items():
        if (rate := document["rate"]) is None:
            continue
        views, size = rate["median"] * _NUM_VIEWS, 2 if name.endswith("bfloat16") else 4
        document |= {
            "views_a_second": views,
            "against_published": rate["median"] / published["median"] if published else None,
            "share_of_matrix_product": views * work.flops / ceilings[_PRODUCT]["rate"]["median"],
            "share_of_memory_copy": views * work.values * size / ceilings[_COPY]["rate"]["median"],
            "augmentation_share": median(t.part_seconds / t.seconds for t in outcomes[name].turns),
        }
    an_image = {"flops": _NUM_VIEWS * work.flops, "values": _NUM_VIEWS * work.values}
    return {"ceilings": ceilings, "an_image": an_image, "contenders": contenders}


def _look_at(race: Race, name: str, document: dict[str, Any]) -> None:
    """Add launches and waits a step; the figures of a contender that fails here stand."""
    contender = race.running.get(name)
    if isinstance(contender, Published | Cheap | Ours):
        seen = race.attempt(name, lambda: look_at(contender.few_steps))
        document |= {} if seen is None else {f"{key}_a_step": value for key, value in asdict(seen).items()}
    document["error"] = race.outcomes[name].error


def _table(report: Mapping[str, Any]) -> str:
    product, copy = (report["ceilings"][name]["rate"]["median"] for name in (_PRODUCT, _COPY))
    rows = [_row(name, document) for name, document in report["contenders"].items()]
    arguments, device = report["arguments"], report["machine"]["device"]
    lines = [
        f"{arguments['encoder']}, {arguments['batch_size']} images a step, {device}: matrix product "
        f"{product / 1e12:.3g} TFLOP/s, copy {copy / 1e9:.3g} GB/s; an image is "
        f"{report['an_image']['flops'] / 1e9:.3g} GFLOP",
        "",
        table(rows),
    ]
    errors = [(name, d["error"]) for name, d in report["contenders"].items() if d["error"] is not None]
    return "\n".join([*lines, *(f"\n{name}: {error}" for name, error in errors)])


def _row(name: str, document: Mapping[str, Any]) -> dict[str, str]:
    def told(key: str, form: str, scale: float = 1.0) -> str:
        value = document.get(key)
        return "-" if value is None else form.format(scale * value)

    return {
        "step": name,
        "images/s": spread(document["rate"]),
        "views/s": told("views_a_second", "{:.4g}"),
        "against published": told("against_published", "{:.2f}x"),
        "of the product": told("share_of_matrix_product", "{:.1f} %", 100),
        "of the copy": told("share_of_memory_copy", "{:.1f} %", 100),
        "augmentation": told("augmentation_share", "{:.1f} %", 100),
        "launches": told("launches_a_step", "{:.0f}"),
        "waits": told("waits_a_step", "{:.2f}"),
        "set-up s": told("setup_seconds", "{:.1f}"),
    }


if __name__ == "__main__":
    main()
