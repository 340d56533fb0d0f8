"""docs/reference.md is what the program says of itself, with every setting that anything reads."""

import re
import runpy
from pathlib import Path

from care_sweep.spec import TrialConfig

_ROOT = Path(__file__).parents[1]


def test_the_reference_is_what_the_program_would_write() -> None:
    made = runpy.run_path(str(_ROOT / "docs" / "make_reference.py"))
    assert made["PATH"].read_text() == made["reference"](), "run `python docs/make_reference.py`"


def test_the_reference_has_all_that_a_submission_and_a_change_may_hold() -> None:
    made = runpy.run_path(str(_ROOT / "docs" / "make_reference.py"))
    page, documents = made["reference"](), [*made["_SUBMITTED"], *made["_CHANGES"].values()]
    mentioned = {name for model in documents for name in model.model_json_schema().get("$defs", {})}
    assert mentioned <= {model.__name__ for model in documents}
    for model in documents:
        for field in model.model_fields.values():
            assert field.description is None or f"| {field.description} |" in page
    for name, field in TrialConfig.model_fields.items():
        assert field.description, f"{name} is not explained"


def test_a_setting_with_two_entries_is_one_sentence() -> None:
    page = (_ROOT / "docs" / "reference.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `CARE_SWEEP_DATA_ROOTS` |")]
    assert row.endswith(
        "default `home/data`); the prefixes of object stores, `s3://bucket/prefix`, that such "
        "datasets may lie under. |"
    )


def test_every_setting_that_the_code_names_is_documented() -> None:
    documented = set(re.findall(r"CARE_SWEEP_[A-Z_]+", (_ROOT / "docs" / "reference.md").read_text()))
    code = [path.read_text() for room in ("care_sweep", "service") for path in (_ROOT / room).rglob("*.py")]
    assert {name for text in code for name in re.findall(r"\bCARE_SWEEP_[A-Z_]+\b", text)} <= documented
