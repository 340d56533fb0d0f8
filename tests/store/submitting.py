"""A process to kill: submits sweeps from NUMBER on until it dies, and prints each once it is acknowledged."""

import sys
from itertools import count

from situations import spec

from care_sweep.store import Store, open_database


def main(url: str, first: int) -> None:
    store = Store(open_database(url))
    for number in count(first):
        name = f"number {number}"
        record, _ = store.submit(spec(name), idempotency_key=name, body_sha256=name)
        print(number, record.id, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
