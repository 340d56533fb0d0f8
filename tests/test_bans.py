"""What may stand nowhere in this repository: pickle, YAML that makes objects, SQL made of text.

`make lint` sees them; for arrays and states that hold pickles ruff has no rule, so one stands here.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]

_BANNED = {
    "S301": "import pickle\npickle.loads(b'')\n",
    "S302": "import marshal\nmarshal.loads(b'')\n",
    "S307": "eval(input())\n",
    "S506": "import yaml\nyaml.load('', yaml.Loader)\n",
    "S602": "import subprocess\nsubprocess.run(input(), shell=True)\n",
    "S608": "def find(cursor, name):\n    cursor.execute(f\"SELECT * FROM trials WHERE name = '{name}'\")\n",
}


@pytest.mark.parametrize("rule", _BANNED)
@pytest.mark.parametrize("place", ["care_sweep/x.py", "care_sweep/learn/x.py", "service/x.py", "tests/x.py"])
def test_the_linter_refuses_it_everywhere(rule: str, place: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise"]
    found = subprocess.run(
        [*command, "--stdin-filename", place, "-"],
        input=_BANNED[rule],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f" {rule} " in found.stdout, found.stdout + found.stderr


def test_no_setting_takes_a_ban_back() -> None:
    lint = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    ignored = {code for codes in [lint["ignore"], *lint["per-file-ignores"].values()] for code in codes}
    assert not ignored & {*_BANNED, "S", "S3", "S30", "S5", "S50", "S6", "S60", "S61"}


def _sources() -> list[Path]:
    folders = [_ROOT / name for name in ("care_sweep", "service", "benchmarks", "tests")]
    return [path for folder in folders for path in folder.rglob("*.py") if path != Path(__file__)]


def test_an_exception_says_why() -> None:
    codes = "|".join(_BANNED)
    exception = re.compile(rf"# noqa: [^#(]*\b(?:{codes})\b(?P<reason>  \(\w.*\))?")
    found = [
        (path.name, match["reason"]) for path in _sources() for match in exception.finditer(path.read_text())
    ]
    assert found, "one at least is known: the loader of YAML that takes less than the safe one"
    assert [name for name, reason in found if reason is None] == []


def _unpickles(source: str) -> list[str]:
    """The calls that would read a pickle: of torch unless told otherwise, of numpy where told."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        given = {one.arg: ast.unparse(one.value) for one in call.keywords}
        name = ast.unparse(call.func)
        if (name == "torch.load" and given.get("weights_only") != "True") or (
            name.endswith(".load") and given.get("allow_pickle", "False") != "False"
        ):
            found.append(ast.unparse(call))
    return found


def test_no_torch_or_numpy_file_is_unpickled() -> None:
    assert {path.name: calls for path in _sources() if (calls := _unpickles(path.read_text()))} == {}


def test_unpickling_is_seen() -> None:
    for call in ("torch.load('a')", "torch.load('a', weights_only=False)", "np.load('a', allow_pickle=True)"):
        assert _unpickles(f"import torch\nx = {call}")
    for call in ("torch.load('a', weights_only=True)", "np.load('a')", "safetensors.torch.load(data)"):
        assert not _unpickles(f"x = {call}")
