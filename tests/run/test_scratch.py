"""What a killed process left in scratch goes with the next one; what a living one has stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from care_sweep.run.scratch import scratch_folder

_HOLDS = """
import sys, time
from pathlib import Path
from care_sweep.run.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), "tune-") as folder:
    (folder / "snapshot").write_text("a secret")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_who_is_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDS, str(tmp_path / "scratch")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with scratch_folder(tmp_path / "scratch", "tune-"):
            assert (left / "snapshot").is_file(), "its process lives"
        os.kill(process.pid, signal.SIGKILL)
    with scratch_folder(tmp_path / "scratch", "attempt-"):
        assert left.is_dir(), "it is of another kind"
    with scratch_folder(tmp_path / "scratch", "tune-") as own:
        assert own.is_dir()
        assert not left.exists()
    assert not own.exists()
