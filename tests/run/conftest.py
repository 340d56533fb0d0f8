"""One real instance (service, runner, local Ray) for all tests that need Ray, since it costs ten seconds; and
sweeps to conduct, and a runner to step, without it."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conducting import Sweep, sweep_spec
from runner_scene import Driver, Scene

from benchmarks.few_images import cut_few_images
from care_sweep.client import Client
from care_sweep.settings import Settings
from care_sweep.store import Store, open_database
from care_sweep.supervise import Instance, running


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings.from_environment({"CARE_SWEEP_HOME": str(home)})


@pytest.fixture(scope="session")
def instance(settings: Settings) -> Iterator[Instance]:
    (settings.home / "data").mkdir()
    with running(settings, num_cpus=2) as instance:
        yield instance


@pytest.fixture(scope="session")
def client(instance: Instance) -> Iterator[Client]:
    with Client(instance.url) as client:
        yield client


@pytest.fixture(scope="session")
def few_images(settings: Settings, instance: Instance) -> str:
    """A dataset of 270 train images: an epoch of a second."""
    return cut_few_images(settings.data_roots[0] / "few")


@pytest.fixture
def make_sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    engine = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    yield lambda **changes: Sweep(Store(engine), tmp_path, sweep_spec(**changes))
    engine.dispose()


@pytest.fixture
def make_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    monkeypatch.setattr(subprocess, "Popen", Driver)
    made: list[Scene] = []

    def make(**options: Any) -> Scene:
        made.append(Scene(tmp_path, **options))
        return made[-1]

    yield make
    for scene in made:
        scene.store.engine.dispose()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene()
