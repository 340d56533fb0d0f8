"""The loop over trials that a researcher would write in place of a sweep.

    python benchmarks/bare_loop.py CONFIGS OUTPUT

Trains the configurations of one JSON file, one after the other, and writes the seconds of all epochs into
another. The process keeps the memory that it frees, as those of trials do, and imports nothing that training
does not need, for whoever times it pays for the imports too.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from care_sweep.learn.data import load_dataset
from care_sweep.learn.train import train
from care_sweep.memory import keep_freed_memory
from care_sweep.spec import TrialConfig


def main(configs: Path, output: Path) -> None:
    keep_freed_memory()
    todo = [TrialConfig.model_validate(document) for document in json.loads(configs.read_text())]
    epochs: list[float] = []
    with TemporaryDirectory() as folder:
        data = load_dataset(todo[0].dataset, download_directory=Path(folder))
        for number, config in enumerate(todo):
            place = Path(folder) / str(number)
            train(config, data, lambda seen: epochs.append(seen.seconds), directory=place)
    output.write_text(json.dumps(epochs))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
