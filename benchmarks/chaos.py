"""Is anything lost when processes die at any instant? A real instance, killed at random, and its promises.

    python benchmarks/chaos.py [--directory chaos] [--seed 0] [--quick]

submissions   sweeps are posted at 20 a second while the service is killed
trials        a sweep runs while its driver, a worker, Ray's raylet and GCS and the runner are killed, some of
              them while they start; it must measure what an undisturbed one measured, to the bit
suspension    a driver is stopped for three leases, alone and with its runner; another takes over, then it is
              woken
damage        bits of checkpoints and training states are flipped, their ends cut off

Stop it whenever you like and give the same command again: a phase that is done is not repeated, nor a round
of `trials`. What broke a promise is done again, and told under `broke_before`. Prints JSON; exit status 1
where a promise was broken. docs/chaos.md has what was found.
"""

import argparse
import json
import os
import platform
import random
import signal
import sys
from pathlib import Path

from phases.damage import damage
from phases.kept import kept
from phases.submissions import submissions
from phases.suspension import suspension
from phases.trials import trials

_KILLS = {"driver": 20, "worker": 20, "raylet": 20, "runner": 5, "gcs_server": 5}
_FEW_KILLS = {"driver": 1, "worker": 1, "raylet": 1, "gcs_server": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("chaos"), help="homes, logs and results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="the first two, with a few kills of each kind, in three minutes"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the instance ends with this
    seed, is_quick = arguments.seed, arguments.quick
    folder = arguments.directory / f"{'quick' if is_quick else 'whole'}-{seed}"
    shape = {"num_trials": 3, "epochs": 6} if is_quick else {"num_trials": 6, "epochs": 12}

    def chance(phase: str) -> random.Random:
        return random.Random(f"{seed} {phase}")  # noqa: S311

    report = {
        "submissions": kept(
            folder / "submissions.json",
            lambda home: submissions(home, chance("submissions"), 5 if is_quick else 50),
        ),
        "trials": trials(folder / "trials", seed, _FEW_KILLS if is_quick else _KILLS, shape),
    }
    if not is_quick:
        report["suspension"] = kept(
            folder / "suspension.json",
            lambda home: suspension(home, chance("suspension"), shape["num_trials"]),
        )
        report["damage"] = kept(folder / "damage.json", lambda home: damage(home, chance("damage"), 100))
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}"
    seconds = sum(phase["seconds"] for phase in report.values())
    print(
        json.dumps(
            {"seed": seed, "quick": is_quick, "machine": machine, "seconds": seconds, **report}, indent=2
        )
    )
    if any(phase["broken"] for phase in report.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
