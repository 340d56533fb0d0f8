"""What can this do, in a few minutes? The tour: a whole sweep over real images, from HTTP to a picture.

Everything it starts, it ends, also on Ctrl-C. What the sweep left stays in the instance's home.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from care_sweep.answers import Trial
from care_sweep.client import Client
from care_sweep.errors import CareSweepError
from care_sweep.search.analysis import standard_error
from care_sweep.settings import Settings
from care_sweep.spec import SweepState
from care_sweep.supervise import Instance, running
from care_sweep.watching import watch

if TYPE_CHECKING:
    from care_sweep.learn.data import Dataset

__all__ = ["demo"]

_SWEEP = {
    "name": "demo",
    "space": "cifar10-mini",
    "num_trials": 12,
    "early_stopping": {"grace_epochs": 2, "reduction_factor": 3},
}
_UNTRAINED_SEEDS = (0, 1, 2)
_COLUMNS = {
    "validation_knn_accuracy": "validation kNN",
    "validation_probe_accuracy": "linear probe",
    "relative_equivariance": "gamma_f (lower: more equivariant)",
}
_INTERRUPTED = 130


def demo(output: Path, *, as_json: bool = False) -> int:
    """Run the tour; its files go to `output`. The exit status: 0 done, 1 failed, 130 interrupted."""
    settings, console = Settings.from_environment(), Console(stderr=as_json)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        console.print("Starting a service, a runner and a local Ray ...")
        with running(settings) as instance, Client(instance.url) as client:
            _say_where(console, instance)
            sweep = client.submit(_SWEEP)
            ended = watch(console, sweep, client.events(sweep["id"]))
            if ended.state != SweepState.SUCCEEDED:
                raise CareSweepError(f"the sweep ended as {ended.state}; see {instance.log_directory}")
            found = _look_at(client, sweep["id"], output)
    except KeyboardInterrupt:
        console.print("\ninterrupted; all that was started has been stopped")
        return _INTERRUPTED
    _say_what_was_found(console, settings, found)
    if as_json:
        print(json.dumps(asdict(found), default=str, indent=2))
    return 0


@dataclass(frozen=True)
class _Found:
    """What the tour found; metrics are those of the last epoch, of validation images."""

    sweep_id: str
    sweep_seconds: float
    best: Mapping[str, float]
    baseline: Mapping[str, float]
    untrained: Mapping[str, float]
    checkpoint: Path
    picture: Path


def _look_at(client: Client, sweep_id: str, output: Path) -> _Found:
    """Download the best encoder, measure where it started from, and draw what it finds alike."""
    from care_sweep import load  # noqa: PLC0415  (torch, once the trials no longer need the processor)
    from care_sweep.learn.data import load_dataset  # noqa: PLC0415
    from care_sweep.learn.neighbors import draw_neighbors  # noqa: PLC0415

    sweep, found = client.sweep(sweep_id), client.best(sweep_id, k=1)
    started, finished = (datetime.fromisoformat(str(sweep[key])) for key in ("started_at", "finished_at"))
    best, baseline = (
        client.trial(sweep_id, one[0]["number"]) for one in (found["configurations"], found["baselines"])
    )
    output.mkdir(parents=True, exist_ok=True)
    checkpoint, picture = client.download(sweep_id, output / "best.tar"), output / "neighbors.png"
    encoder = load(checkpoint)
    data = load_dataset(encoder.config.dataset, download_directory=output)
    draw_neighbors(encoder, data, picture)
    return _Found(
        sweep_id,
        (finished - started).total_seconds(),
        best["metrics"],
        baseline["metrics"],
        _untrained(best, data),
        checkpoint,
        picture,
    )


def _untrained(best: Trial, data: "Dataset") -> Mapping[str, float]:
    """The mean over three initialisations of the measures of the encoder that training starts from."""
    from care_sweep.learn.train import untrained  # noqa: PLC0415
    from care_sweep.search.catalog import load_space  # noqa: PLC0415

    space = load_space("cifar10-mini")
    found = [untrained(space.trial_config(best["parameters"], seed), data) for seed in _UNTRAINED_SEEDS]
    return {name: mean(measures[name] for measures in found) for name in found[0]}


def _table(found: _Found) -> Table:
    num_images = found.best["num_validation_images"]
    table = Table(title=f"Measured on {num_images:.0f} validation images, one training seed")
    table.add_column("encoder")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    rows = {
        "best of the sweep": found.best,
        "SimCLR baseline": found.baseline,
        "untrained (mean of 3)": found.untrained,
    }
    for name, metrics in rows.items():
        table.add_row(name, *(_shown(column, metrics[column], num_images) for column in _COLUMNS))
    return table


def _margin(best: Mapping[str, float], untrained: Mapping[str, float]) -> str:
    """How far the best is above untrained, in binomial standard errors of the untrained accuracy."""
    start, reached = (one["validation_knn_accuracy"] for one in (untrained, best))
    errors = (reached - start) / standard_error(start, int(best["num_validation_images"]))
    return f"By kNN the best is {errors:.1f} binomial standard errors above untrained."


def _shown(column: str, value: float, num_images: float) -> str:
    if not column.endswith("accuracy"):
        return f"{value:.3f}"
    return f"{100 * value:.1f} ± {100 * standard_error(value, int(num_images)):.1f} %"


# --- what is said ---


def _say_where(console: Console, instance: Instance) -> None:
    console.print(f"service    {instance.url}/docs", soft_wrap=True)
    if instance.dashboard_url:
        login = f"log in with: cat {instance.token_path}"
        console.print(f"dashboard  {instance.dashboard_url}  {login}", soft_wrap=True)


def _say_what_was_found(console: Console, settings: Settings, found: _Found) -> None:
    console.print(f"The sweep took {found.sweep_seconds:.0f} s.")
    console.print(_table(found))
    console.print(_margin(found.best, found.untrained))
    for line in (
        f"checkpoint {found.checkpoint}",
        f"picture    {found.picture}: validation images and what the best encoder finds nearest",
        f"home       {settings.home}: the sweep, its logs and every checkpoint",
        "next       care-sweep serve, and in another terminal:",
        f"           care-sweep show {found.sweep_id}",
        "           care-sweep submit cifar10-mini --watch",
    ):
        console.print(line, soft_wrap=True, highlight=False)
