"""Two nodes full of small trials, of which one on each reports, then all; a late trial needs a whole node.

    python making_room.py HOME    prints how the attempts of the small ones ended, and where all ran

Each driver is this script too: its trials wait before an epoch until a file, their gate, is there.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nodes import EPOCHS, SimulatedCluster, sleeping_sweep

from care_sweep.run.driver import main as drive
from care_sweep.settings import Settings
from care_sweep.store import AttemptRecord, Store, open_database

_LONGEST_SECONDS = 100.0


def _gate(home: Path, prefix: str, epoch: int) -> Path:
    return home / f"{prefix.replace('/', '-')}-{epoch}"


def _gated(home: Path) -> Callable[[Mapping[str, Any]], None]:
    """A worker's function: it says where it runs, and each epoch ends once its gate is open."""

    def wait(order: Mapping[str, Any]) -> None:
        from ray import tune

        from care_sweep.run.worker import own_place
        from care_sweep.spec import Measurement

        tune.report({"place": own_place().model_dump_json()})
        for epoch in range(order["last_epoch"] + 1, EPOCHS + 1):
            while not _gate(home, order["prefix"], epoch).exists():
                time.sleep(0.1)
            measurement = Measurement(epoch=epoch, metrics={"validation_knn_accuracy": 0.5}, seconds=1.0)
            tune.report({"measurement": measurement.model_dump_json()})

    return wait


def _run(home: Path) -> Mapping[str, Any]:
    os.environ["CARE_SWEEP_HOME"] = str(home)
    cluster = SimulatedCluster(home, 2, {"num_cpus": 2, "num_gpus": 2})
    from care_sweep.layout import trial_prefix
    from care_sweep.run.runner import Runner  # with it Ray, which must find the environment set

    settings = Settings.from_environment()
    store = Store(open_database(settings.database_url))
    runner = Runner(settings, store, driver=[sys.executable, __file__, "--home", str(home)])

    def submit(num_trials: int, gpus: int) -> str:
        resources = {"cpus_per_trial": gpus, "gpus_per_trial": gpus}
        return store.submit(sleeping_sweep(num_trials, resources=resources))[0].id

    def attempts(sweep_id: str) -> Sequence[AttemptRecord]:
        """The last of each trial."""
        numbers = (trial.number for trial in store.trials(sweep_id).items)
        return [store.attempts(sweep_id, number)[-1] for number in numbers]

    def nodes(sweep_id: str) -> Sequence[str]:
        """Where each trial that has begun runs, or ran last."""
        return [one.place.node_id for one in attempts(sweep_id) if one.place is not None]

    def until(is_so: Callable[[], bool]) -> bool:
        end = time.monotonic() + _LONGEST_SECONDS
        while not is_so() and time.monotonic() < end:
            runner.step()
            time.sleep(0.2)
        return is_so()

    def all_have_reported(numbers: Sequence[int]) -> bool:
        return all(store.trial(early, number).last_epoch == 1 for number in numbers)

    try:
        early = submit(4, gpus=1)
        assert until(lambda: len(nodes(early)) == 4), "the small trials do not run"
        late = submit(1, gpus=2)
        assert until(lambda: len(attempts(late)) == 1), "the large trial is not begun"
        is_known = time.monotonic() + 5  # to the driver of the small ones, which looks once a second
        until(lambda: time.monotonic() > is_known)
        one_of_each = [nodes(early).index(node) for node in set(nodes(early))]
        for numbers in (one_of_each, range(4)):
            for number in numbers:
                _gate(home, trial_prefix(early, number), 1).touch()
            assert until(lambda numbers=numbers: all_have_reported(numbers)), "a trial does not report"
        has_run = until(lambda: bool(nodes(late)))
        return {
            "small": [(one.reason, one.place and one.place.node_id) for one in attempts(early)],
            "large": nodes(late)[0] if has_run else None,
        }
    finally:
        runner.close()
        cluster.end()


if __name__ == "__main__":
    if sys.argv[1] == "--home":
        sys.exit(drive(_gated(Path(sys.argv[2]))))
    print(json.dumps(_run(Path(sys.argv[1]))))
