"""The driver of a sweep whose trials sleep in place of training: to look at the machinery, not at learning.

    python benchmarks/sleeping.py --seconds-per-epoch 0.2

All but the work is the service's own; `care_sweep.run.runner.Runner` takes the command as its `driver`. A
trial measures what it would, were accuracy a smooth function of its temperature alone. Each epoch leaves a
training state in the storage, and an attempt that goes on reads the one it goes on from.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from care_sweep.run.driver import main

__all__ = ["driver_command", "sleeping"]


def driver_command(seconds_per_epoch: float) -> list[str]:
    """What a `Runner` is to start in place of the driver whose trials train."""
    return [sys.executable, __file__, "--seconds-per-epoch", str(seconds_per_epoch)]


def sleeping(seconds_per_epoch: float) -> Callable[[Mapping[str, Any]], None]:
    """A worker's function that takes so long for an epoch."""

    def sleep(order: Mapping[str, Any]) -> None:
        from ray import tune

        from care_sweep.layout import state_name
        from care_sweep.run.worker import own_place
        from care_sweep.run.workplace import workplace
        from care_sweep.spec import Measurement
        from care_sweep.storage import open_storage

        tune.report({"place": own_place().model_dump_json()})
        config, scratch = order["config"], Path(order["scratch_directory"])
        storage = open_storage(order["storage_uri"])
        with workplace(storage, order["prefix"], order["attempt"], scratch) as place:
            state = next(place.training_states(order["last_epoch"]), None)
            done = int(state.read_text()) if state else 0  # like training, it then begins anew
            for epoch in range(done + 1, config["epochs"] + 1):
                time.sleep(seconds_per_epoch)
                accuracy = (1 - 0.1 * math.log(config["temperature"] / 0.3) ** 2) * (1 - 0.5 / (1 + epoch))
                measurement = Measurement(
                    epoch=epoch, metrics={"validation_knn_accuracy": accuracy}, seconds=seconds_per_epoch
                )
                (place.directory / state_name(epoch)).write_text(str(epoch))
                place.before_report(measurement)
                tune.report({"measurement": measurement.model_dump_json()})
                place.after_report(measurement)

    return sleep


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds-per-epoch", type=float, required=True)
    sys.exit(main(sleeping(parser.parse_args().seconds_per_epoch)))
