"""docs/reference.md is what the program says of itself, with every setting that anything reads."""

import re
import runpy
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def test_the_reference_is_what_the_program_would_write() -> None:
    made = runpy.run_path(str(_ROOT / "docs" / "make_reference.py"))
    assert made["PATH"].read_text() == made["reference"](), "run `python docs/make_reference.py`"


def test_every_setting_that_the_code_names_is_documented() -> None:
    documented = set(re.findall(r"CARE_SWEEP_[A-Z_]+", (_ROOT / "docs" / "reference.md").read_text()))
    code = [path.read_text() for room in ("care_sweep", "service") for path in (_ROOT / room).rglob("*.py")]
    assert {name for text in code for name in re.findall(r"\bCARE_SWEEP_[A-Z_]+\b", text)} <= documented
