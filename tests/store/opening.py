"""Opens an empty database in several processes at once, round after round; prints what each of them said."""

import json
import os
import sys
from pathlib import Path

import alembic.command  # noqa: F401  (before the forks, which would each pay for it)

from care_sweep.store import Store, open_database


def _open(url: str, gate: int) -> None:
    os.read(gate, 1)  # returns for all of them when the parent closes the other end
    try:
        Store(open_database(url)).ping()
    except BaseException as error:  # noqa: BLE001
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(folder: str, num_rounds: int, num_processes: int) -> None:
    statuses = []
    for number in range(num_rounds):
        url = f"sqlite:///{Path(folder) / f'round-{number}' / 'store.db'}"
        gate, other_end = os.pipe()
        children = []
        for _ in range(num_processes):
            child = os.fork()
            if child == 0:
                os.close(other_end)
                _open(url, gate)
            children.append(child)
        os.close(gate)
        os.close(other_end)
        statuses += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
