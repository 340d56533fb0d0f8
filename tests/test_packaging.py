"""What is shipped: the wheel's content, and that requirements.lock pins what pyproject.toml asks for."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGES = ("care_sweep", "service", "search_spaces")
PINNED = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^\s;]+)(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)")
ORIGIN = re.compile(r"# (via)? *([a-z0-9-]+( \(pyproject\.toml(:[a-z]+)?\))?|-c \(workspace\))?")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the locked build backend: no index is asked for anything."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith("care_sweep-")}
    assert names - metadata == {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {
        "care_sweep/py.typed",
        "care_sweep/learn/images/cifar10-mini/test.parquet",
        "care_sweep/learn/images/cifar10-mini/train.parquet",
        "care_sweep/learn/images/imagenet100.txt",
        "care_sweep/store/migrations/env.py",
        "care_sweep/store/migrations/versions/0001_first.py",
        "search_spaces/care-cifar10.yaml",
        "search_spaces/cifar10-mini.yaml",
        "service/py.typed",
    } <= names
    assert {name.partition("/")[2] for name in metadata} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_wheel_is_small(wheel: Path) -> None:
    size = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {size:.1f} MB")
    assert size < 12  # of which the bundled images may take 11


def test_the_wheel_works_where_no_repository_is(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = f"""
import sys
sys.path[:] = [{str(tmp_path / "site")!r}, *(path for path in sys.path if path not in ("", {str(ROOT)!r}))]
from care_sweep.cli import main
sys.argv = ["care-sweep", "spaces", "--json"]
main()
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "cifar10-mini" in ran.stdout


def test_the_lock_names_no_host_and_hashes_everything() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    for line in _requirements(lock):
        assert PINNED.fullmatch(line), line
    for comment in re.findall(r"#.*", lock):
        assert ORIGIN.fullmatch(comment), comment


def test_the_lock_is_what_pyproject_asks_for() -> None:
    project = _pyproject()
    pins = _pins()
    wanted = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *(each for extra in project["project"]["optional-dependencies"].values() for each in extra),
        *project["build-system"]["requires"],
        *project["tool"]["uv"]["constraint-dependencies"],
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} is not locked"
        assert pins[name] in requirement.specifier, f"{requirement}, yet locked is {pins[name]}"


def test_torch_and_torchvision_are_locked_as_a_pair() -> None:
    """One torchvision belongs to one torch: 0.26 to 2.11, 0.29 to 2.14; others fail at import or later."""
    pins = _pins()
    assert pins["torchvision"].minor == pins["torch"].minor + 15
    assert {pins["torch"].major, pins["torchvision"].major} == {2, 0}
    assert not pins["torch"].local
    constrained = {Requirement(each).name for each in _pyproject()["tool"]["uv"]["constraint-dependencies"]}
    assert {"torch", "torchvision"} <= constrained


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _requirements(lock: str) -> list[str]:
    joined = re.sub(r"\s*\\\n\s*", " ", lock)
    return [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]


def _pins() -> dict[str, Version]:
    lines = _requirements((ROOT / "requirements.lock").read_text())
    pinned = [match for line in lines if (match := PINNED.fullmatch(line))]
    return {match["name"]: Version(match["version"]) for match in pinned}
