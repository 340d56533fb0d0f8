"""The README's commands, run as they stand; what takes long is part of `make test-full`."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from care_sweep.cli import app
from care_sweep.learn.data import load_dataset

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()


class _Block(NamedTuple):
    language: str
    text: str


def _blocks() -> list[_Block]:
    return [
        _Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", _README, re.DOTALL | re.MULTILINE)
    ]


_MAKE = [block for block in _blocks() if block.text.startswith("make ")]
_SERVE = [block for block in _blocks() if "care-sweep serve" in block.text]
_OTHERS = [b for b in _blocks() if b.language in ("sh", "python") and b not in _MAKE + _SERVE]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An empty HOME, and this environment's programs as `activate` would put them on the path."""
    return {
        "HOME": str(tmp_path_factory.mktemp("empty-home")),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
    }


@pytest.fixture(scope="module")
def port(environment: dict[str, str]) -> Iterator[int]:
    """The README's `care-sweep serve`, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = ["care-sweep", "serve", "--port", str(port)]
    serve = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert serve.stdout is not None
    for line in serve.stdout:
        if "Ctrl-C" in line:
            break
    yield port
    serve.send_signal(signal.SIGINT)
    assert serve.wait(60) == 0
    serve.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `my-images` in it."""
    folder = tmp_path_factory.mktemp("work")
    data = load_dataset("cifar10-mini", download_directory=folder)
    for label in range(3):
        kind = folder / "my-images" / data.class_names[label]
        kind.mkdir(parents=True)
        for index in (data.train.labels == label).nonzero().flatten()[:30].tolist():
            image = Image.fromarray(data.train.images[index].permute(1, 2, 0).numpy())
            image.save(kind / f"{index}.png")
    return folder


def test_the_readme_has_what_this_file_runs() -> None:
    assert [block.text for block in _MAKE] == ["make demo\n", "make test\n"]
    assert len(_SERVE) == 1
    assert len(_OTHERS) == 6


def test_every_command_is_in_the_changelog() -> None:
    changelog = (_ROOT / "CHANGELOG.md").read_text()
    for one in app.registered_commands:
        name = one.name or (one.callback.__name__ if one.callback else "")
        assert f"`{name}`" in changelog, name


def _marked(block: _Block) -> Any:
    """One sweep in every run is enough; those that only ask for it in other ways wait for the full one."""
    again = block.language == "python" or "watch" in block.text
    marks = [pytest.mark.full] if again else []
    return pytest.param(block, id=block.text.splitlines()[0][:30], marks=marks)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", [_marked(block) for block in _OTHERS])
def test_a_block_runs_as_it_stands(
    block: _Block, port: int, environment: dict[str, str], folder: Path
) -> None:
    text = block.text.replace("8484", str(port))
    interpreter = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    environment = environment | {"CARE_SWEEP_URL": f"http://127.0.0.1:{port}"}
    done = subprocess.run(
        [*interpreter, text], env=environment, cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_make_demo_runs_from_a_fresh_clone(tmp_path: Path, environment: dict[str, str]) -> None:
    clone, python = tmp_path / "clone", shutil.which("python3.11")
    subprocess.run(["git", "clone", "-q", str(_ROOT), str(clone)], check=True)
    command = ["make", "demo", *([f"PYTHON={python}"] if python else [])]
    own = os.environ | environment | {"HOME": str(tmp_path)}  # in the other HOME an instance may run
    started = time.monotonic()
    done = subprocess.run(command, cwd=clone, env=own, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(f"make demo from a fresh clone took {time.monotonic() - started:.0f} s\n{done.stdout}")
    margin = re.search(r"best is ([\d.]+) binomial standard errors above untrained", done.stdout)
    assert margin is not None
    assert float(margin.group(1)) >= 3
    assert (clone / "care-demo" / "best.tar").is_file()
    assert (clone / "care-demo" / "neighbors.png").is_file()
