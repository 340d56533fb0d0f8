"""How mistakes are told: each with its JSON pointer, what stood there, and what would work."""

import math
from typing import Any, Literal

import pytest
from pydantic_core import PydanticCustomError

from care_sweep.documents import Document, parse, pointer, shorten, unknown, unknown_keys
from care_sweep.errors import InvalidDocument, Problem


class Leaf(Document):
    size: int = 1
    ratio: float = 0.5


class Tree(Document):
    name: str
    leaf: Leaf = Leaf()
    leaves: list[Leaf] = []  # noqa: RUF012  (pydantic copies it)
    rings: int | Literal["many"] | None = None
    marks: dict[str, int] = {}  # noqa: RUF012


def problems(document: Any) -> list[Problem]:
    with pytest.raises(InvalidDocument) as caught:
        parse(Tree, document)
    return list(caught.value.problems)


def test_a_sound_document_becomes_a_frozen_model() -> None:
    tree = parse(Tree, {"name": "oak", "leaves": [{"size": 2}]})
    assert tree.leaves[0].size == 2
    with pytest.raises(ValueError, match="frozen"):
        tree.name = "elm"  # type: ignore[misc]


def test_every_problem_is_told_at_once() -> None:
    found = problems({"leaf": {"size": "big"}, "leaves": [{}, {"ratio": math.nan}, 7, {"x": 1, "y": 2}]})
    places = [problem.pointer for problem in found]
    assert places == ["/name", "/leaf/size", "/leaves/1/ratio", "/leaves/2", "/leaves/3/x", "/leaves/3/y"]


def test_an_unknown_key_comes_first_at_its_level() -> None:
    """A mistyped key mostly is the cause of what else is wrong there."""
    assert [problem.pointer for problem in problems({"nam": "oak", "leaf": 3})] == ["/nam"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, Problem("/name", "is required")),
        ({"name": "oak", "laef": {}}, Problem("/laef", "unknown; did you mean 'leaf'?")),
        (
            {"name": "oak", "leaf": {"colour": 1}},
            Problem("/leaf/colour", "unknown; known are size, ratio"),
        ),
        ({"name": 3}, Problem("/name", "should be a valid string", "3")),
        ([], Problem("", "must be a mapping with keys of name, leaf, leaves, rings, marks", "[]")),
        ({"name": "oak", "leaf": 3}, Problem("/leaf", "must be a mapping with keys of size, ratio", "3")),
        ({"name": "oak", "marks": 3}, Problem("/marks", "should be a mapping", "3")),
        ({"name": "oak", "rings": "x"}, Problem("/rings", "should be a valid integer or 'many'", '"x"')),
        (
            {"name": "oak", "leaves": [{}, {"ratio": math.inf}]},
            Problem("/leaves/1/ratio", "should be a finite number", "inf"),
        ),
        (
            {"name": "oak", "leaf": {"ratio": math.nan}},
            Problem("/leaf/ratio", "should be a finite number", "nan"),
        ),
    ],
)
def test_a_problem_has_place_detail_and_value(document: Any, expected: Problem) -> None:
    assert problems(document) == [expected]


def test_a_validator_can_point_at_a_key_or_report_several() -> None:
    class Pair(Document):
        low: int
        high: int

        def model_post_init(self, _: Any) -> None:
            if self.low == self.high:
                raise PydanticCustomError("equal", "low {low} equals high", {"low": self.low, "key": "high"})
            if self.low > self.high:
                several = [Problem("/low", "too high"), Problem("/high", "too low", "1")]
                raise PydanticCustomError("problems", "unsound", {"problems": several})

    class Holder(Document):
        pairs: list[Pair]

    with pytest.raises(InvalidDocument) as caught:
        parse(Holder, {"pairs": [{"low": 1, "high": 2}, {"low": 1, "high": 1}, {"low": 2, "high": 1}]})
    assert caught.value.problems == (
        Problem("/pairs/1/high", "low 1 equals high", "1"),
        Problem("/pairs/2/low", "too high"),
        Problem("/pairs/2/high", "too low", "1"),
    )


def test_a_problem_reads_as_a_sentence_and_as_json() -> None:
    problem = Problem("/a", "must be small", "9")
    assert str(problem) == "/a: must be small (received 9)"
    assert str(Problem("", "is empty")) == "/: is empty"
    assert problem.to_json() == {"pointer": "/a", "detail": "must be small", "value": "9"}
    assert Problem("/a", "is required").to_json() == {"pointer": "/a", "detail": "is required"}
    assert str(InvalidDocument([problem, problem])).count("\n") == 1


def test_pointers_are_escaped() -> None:
    assert pointer("a/b", "c~d", 0) == "/a~1b/c~0d/0"
    assert pointer() == ""
    assert problems({"name": "oak", "a/b~": 1})[0].pointer == "/a~1b~0"


def test_unknown_names_the_nearest_or_all() -> None:
    assert unknown("temprature", ["temperature", "seed"]) == "unknown; did you mean 'temperature'?"
    assert unknown("zzz", ["temperature", "seed"]) == "unknown; known are temperature, seed"


@pytest.mark.parametrize(
    ("value", "text"),
    [("é", '"é"'), (math.nan, "nan"), (-math.inf, "-inf"), ([1, None], "[1, null]"), (object, "\"<class 'o")],
)
def test_values_are_shown_as_json(value: Any, text: str) -> None:
    assert shorten(value).startswith(text)


def test_long_values_are_cut() -> None:
    assert len(shorten("x" * 1000)) == 80
    assert shorten("x" * 1000).endswith("…")


def test_a_document_full_of_mistakes_is_answered_with_a_few() -> None:
    found = problems({"name": "oak", "marks": {f"mark {number}": "x" for number in range(1000)}})
    assert len(found) == 21
    assert found[0] == Problem("/marks/mark 0", "should be a valid integer", '"x"')
    assert found[-1] == Problem("", "and 980 more problems; correct these first")


def test_of_many_unknown_keys_a_few_are_looked_into() -> None:
    found = problems({"name": "oak", "leaf": {f"key {number}": 1 for number in range(1000)}})
    assert [problem.pointer for problem in found[:2]] == ["/leaf/key 0", "/leaf/key 1"]
    assert found[-1] == Problem("/leaf", "and 990 more unknown keys")
    assert len(found) == len(list(unknown_keys(["x"] * 1000, ["size"]))) == 11


def test_a_problem_is_short_whatever_the_document() -> None:
    (problem,) = problems({"name": "oak", "x" * 100_000: 1})
    assert len(str(problem)) < 1000
    (problem,) = problems({"name": "oak", "marks": ["x" * 100_000] * 1000})
    assert len(str(problem)) < 1000
