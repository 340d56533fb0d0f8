"""What the images install: locks that agree with requirements.lock, Dockerfiles that a linter accepts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
LOCKS = ("api.lock", "worker.lock", "build.lock")
PINNED = re.compile(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)")
ORIGIN = re.compile(
    r"# (via)? *([a-z0-9-]+( \(pyproject\.toml(:[a-z]+)?\))?|-c (requirements\.lock|\(workspace\)))?"
)
OF_TRIALS = {"torch", "torchvision", "ray", "triton", "pandas"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_with_hashes_what_requirements_lock_pins(lock: str) -> None:
    pins, all_pins = _pins(DOCKER / lock), _pins(ROOT / "requirements.lock")
    assert pins
    assert pins.items() <= all_pins.items()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_host(lock: str) -> None:
    text = (DOCKER / lock).read_text()
    assert "://" not in text
    for comment in re.findall(r"#.*", text):
        assert ORIGIN.fullmatch(comment), comment


def test_the_service_asks_for_some_of_the_dependencies_in_the_same_words() -> None:
    project = _pyproject()
    extras = project["project"]["optional-dependencies"]
    known = {*project["project"]["dependencies"], *extras["postgresql"], *extras["s3"]}
    asked = set(project["dependency-groups"]["service"])
    assert asked <= known
    assert {*extras["postgresql"], *extras["s3"]} <= asked
    assert set(project["dependency-groups"]["build"]) == set(project["build-system"]["requires"])


def test_each_image_installs_what_it_is_for() -> None:
    project = _pyproject()
    groups, extras = project["dependency-groups"], project["project"]["optional-dependencies"]
    api, worker = _pins(DOCKER / "api.lock"), _pins(DOCKER / "worker.lock")
    assert not OF_TRIALS & api.keys()
    assert {*OF_TRIALS} <= worker.keys()
    assert _names(groups["service"]) <= api.keys()
    dependencies = [*project["project"]["dependencies"], *extras["postgresql"], *extras["s3"]]
    assert _names(dependencies) <= worker.keys()
    assert not {"pytest", "mypy"} & worker.keys()


def test_the_service_imports_nothing_that_its_image_lacks() -> None:
    """All of service, and what of care_sweep the command line needs for tokens and databases."""
    script = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions
before = {*sys.modules}
import service, care_sweep.cli.access, care_sweep.cli.database
for module in pkgutil.walk_packages(service.__path__, "service."):
    importlib.import_module(module.name)
import care_sweep.storage.bucket, psycopg, pyarrow.parquet
loaded = {name.partition(".")[0] for name in sys.modules.keys() - before}
for name, owners in packages_distributions().items():
    if name in loaded:
        print(*owners)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    there = {*_pins(DOCKER / "api.lock"), "care-sweep"}
    assert len(ran.stdout.splitlines()) > 20
    for owners in ran.stdout.splitlines():  # a namespace has several
        assert there & {canonicalize_name(owner) for owner in owners.split()}, owners


@pytest.mark.parametrize("file", sorted(DOCKER.rglob("*Dockerfile")), ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "# syntax" not in file.read_text()


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def _pins(lock: Path) -> dict[str, str]:
    joined = re.sub(r"\s*\\\n\s*", " ", lock.read_text())
    lines = [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]
    found = [PINNED.fullmatch(line.partition(" ; ")[0] if " ; " in line else line) for line in lines]
    assert all(found), lock
    return {match[1]: match[2] for match in found if match}
