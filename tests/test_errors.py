"""The tree of errors is the one that is drawn at its top."""

import re

from care_sweep import errors
from care_sweep.errors import CareSweepError


def _drawn() -> dict[str, str]:
    """Each error below the root and the one that it hangs from."""
    assert errors.__doc__ is not None
    found, branch = {}, ["CareSweepError"]
    for indent, name in re.findall(r"^([│ ]*)[├└]── (\w+)", errors.__doc__, re.MULTILINE):
        branch[len(indent) // 4 + 1 :] = [name]
        found[name] = branch[-2]
    return found


def _below(error: type[CareSweepError]) -> dict[str, str]:
    found = {}
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= {child.__name__: error.__name__, **_below(child)}
    return found


def test_the_drawing_is_the_tree() -> None:
    assert _drawn() == _below(CareSweepError)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) == {"CareSweepError", "Problem", *_drawn()}
