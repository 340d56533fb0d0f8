"""What does a trial hold of a GPU where the sweep leaves it to us? What a short timing says is best.

The module loads torch only inside the task, since the driver, which never computes, imports it too.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from care_sweep.documents import parse
from care_sweep.run.conductor import Conductor
from care_sweep.settings import Settings
from care_sweep.spec import (
    Parameter,
    Scalar,
    SearchSpace,
    SweepSpec,
    TrialConfig,
)

__all__ = ["choose_gpus", "heaviest", "most_at_once", "time_trials"]

_LOG = logging.getLogger("care_sweep.driver")
_MOST_AT_ONCE = 8
_TIMED_SECONDS = 120.0  # for 2, 4 and 8 trials; the first, which compiles, has its own time
_TIMED_STEPS = 64  # of an epoch: what happens between epochs is a small part, and eight soon have theirs
_LOOK_SECONDS = 1.0

_LIGHT_TO_HEAVY: Mapping[str, Sequence[Scalar]] = {
    "encoder": ("resnet_tiny", "resnet18", "resnet50"),
    "stem": ("imagenet", "cifar"),
    "base": ("simclr", "barlow_twins", "moco"),
    "precision": ("bfloat16", "auto", "float32"),
}
"""What decides, with these numbers, how much memory and time a step takes."""

_HEAVY_WHEN_LARGE = ("batch_size", "equivariance_weight", "queue_size")


def choose_gpus(conductor: Conductor, settings: Settings, nodes: Sequence[Mapping[str, float]]) -> float:
    """The GPUs of a trial: those of the sweep's document or, for `auto`, of a timing, made once a sweep.

    What is chosen is noted, for the other sweeps divide the cluster by it. `nodes` are the resources of each.
    """
    wanted = conductor.spec.resources.gpus_per_trial
    if wanted != "auto":
        return wanted
    chosen = _untimed(conductor, nodes)
    if chosen is None:
        return _timed(conductor, settings, most_at_once(nodes, conductor.spec))
    if chosen != conductor.gpus_noted:
        conductor.note_gpus(chosen)
    return chosen


def _untimed(conductor: Conductor, nodes: Sequence[Mapping[str, float]]) -> float | None:
    """What needs no timing; None where only that can tell."""
    if all(node.get("GPU", 0) < 1 for node in nodes):
        return 0.0
    return conductor.gpus_noted or (1.0 if most_at_once(nodes, conductor.spec) == 1 else None)


def most_at_once(nodes: Sequence[Mapping[str, float]], spec: SweepSpec) -> int:
    """How many trials could share a GPU: those that there are, and have CPUs beside it."""
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    num_gpus = sum(math.floor(node["GPU"]) for node in with_gpus)
    trials = min(spec.num_trials, spec.max_concurrent_trials or spec.num_trials)
    cpus = spec.resources.cpus_per_trial
    by_cpus = max(math.floor(node.get("CPU", 0) / (cpus * node["GPU"])) for node in with_gpus)
    return max(1, min(_MOST_AT_ONCE, math.ceil(trials / num_gpus), by_cpus))


def heaviest(space: SearchSpace, seed: int) -> TrialConfig:
    """The configuration of the space that asks most of a GPU; one of them, baselines aside.

    Its learning rate is too small for it to diverge.
    """
    values: dict[str, Scalar] = {}
    for name, parameter in space.parameters.items():
        if parameter.is_active(values):
            values[name] = _heaviest_value(name, parameter)
    return space.trial_config(values, seed).model_copy(update={"learning_rate": 1e-6})


def _heaviest_value(name: str, parameter: Parameter) -> Scalar:
    values = [value for _, value in parameter.edge_values()]
    if name in _LIGHT_TO_HEAVY:
        return max(values, key=_LIGHT_TO_HEAVY[name].index)
    if name in _HEAVY_WHEN_LARGE:
        return max(values, key=float)
    if parameter.default is not None:
        return parameter.default
    return values[0]


def _timed(conductor: Conductor, settings: Settings, most: int) -> float:
    """The share of a GPU that a timing on one of them says is best, noted; a whole one where it fails."""
    spec = conductor.spec
    holding = ray.remote(num_cpus=spec.resources.cpus_per_trial, num_gpus=1, max_calls=1, max_retries=0)
    config = heaviest(spec.space, spec.seed).model_dump()
    places = settings.download_directory, settings.data_roots, settings.data_uris
    conductor.ready(True)  # it wants a whole GPU, for which the others make room
    task = holding(time_trials).remote(config, most, *places)
    conductor.explain("timing how many trials a GPU runs best at once")
    while not ray.wait([task], timeout=_LOOK_SECONDS)[0]:
        conductor.look()
        if conductor.is_finished:
            ray.cancel(task, force=True)
            conductor.explain(None)
            return 1.0
    try:
        num_trials, message = ray.get(task)
    except RayError as error:
        _LOG.warning("the timing failed", exc_info=error)
        num_trials, message = 1, f"a GPU for each trial, for the timing failed: {_last_line(error)}"
    conductor.explain(None)
    _LOG.info("%s", message)
    gpus: float = 1 / num_trials
    conductor.note_gpus(gpus, message)
    return gpus


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:1000]


def time_trials(
    config: Mapping[str, Any],
    most: int,
    download_directory: Path,
    data_roots: Sequence[Path],
    data_uris: Sequence[str] = (),
) -> tuple[int, str]:
    """How many trials of this configuration a GPU runs best at once, up to `most`, and in words why.

    Raises:
        PackError: not even one can be built or run.
    """
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415
    from care_sweep.learn.packing import Order, time_packing  # noqa: PLC0415
    from care_sweep.learn.train import default_device  # noqa: PLC0415

    told = parse(TrialConfig, config)
    data = functools.partial(
        load_dataset,
        told.dataset,
        download_directory=download_directory,
        roots=data_roots,
        uris=data_uris,
        resize=told.resize,
    )
    order = Order(told, data, str(default_device()), _TIMED_STEPS)
    found = time_packing(order, most, seconds=_TIMED_SECONDS)
    rates = ", ".join(f"{number}: {rate:.4g}" for number, rate in found.rates.items())
    memory, free = found.memory_bytes / 2**30, found.free_bytes / 2**30
    return found.num_trials, (
        f"{found.num_trials} at once on a GPU: images/s of so many trials {rates}; "
        f"one takes {memory:.1f} of {free:.1f} GiB"
    )
