"""Named spaces are sound, a sweep may name one, and a document is read plainly or refused with its place."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from care_sweep.errors import InvalidDocument, NotFound
from care_sweep.search.catalog import load_space, read_document, resolve_sweep, space_names
from care_sweep.spec import TrialConfig


@pytest.mark.parametrize("name", space_names())
def test_every_shipped_space_is_sound(name: str) -> None:
    space = load_space(name)
    assert space.name == name
    assert any(baseline.get("equivariance_weight") == 0 for baseline in space.baselines)  # SimCLR beside it
    for baseline in space.baselines:
        space.trial_config(space.baseline_values(baseline))


def test_a_shipped_space_is_read_once() -> None:
    """To read YAML takes longer than all else that a submission needs of this room."""
    assert load_space("care-cifar10") is load_space("care-cifar10")


def test_the_published_recipe_comes_first() -> None:
    """CIFAR-10: lambda 0.01 on the published scale, times 2 (c - 1) on ours; but 100 epochs for 400."""
    space = load_space("care-cifar10")
    published = space.trial_config(space.baseline_values(space.baselines[0]))
    factor = 2 * (published.batch_size / published.num_splits - 1)
    assert published == TrialConfig(
        dataset="cifar10",
        encoder="resnet50",
        epochs=100,
        batch_size=256,
        num_splits=16,
        equivariance_weight=0.01 * factor,
        temperature=0.5,
        augmentation_strength=1.0,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=1e-6,
    )


def test_an_unknown_space_is_not_found_with_a_close_name() -> None:
    with pytest.raises(NotFound, match=r'"care-cifar01": unknown; did you mean \'care-cifar10\'\?'):
        load_space("care-cifar01")


@pytest.mark.parametrize("name", ["../pyproject", "", "care-cifar10.yaml", "/etc/passwd"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(NotFound):
        load_space(name)


def test_a_sweep_may_name_its_space() -> None:
    sweep = resolve_sweep({"name": "s", "space": "care-cifar10", "num_trials": 40})
    assert sweep.space == load_space("care-cifar10")
    assert sweep.epochs == 100


def test_a_sweep_may_bring_its_space() -> None:
    space = {"parameters": {"temperature": {"type": "float", "low": 0.1, "high": 1}}}
    assert resolve_sweep({"name": "s", "space": space, "num_trials": 1}).space.name == "inline"


def test_an_unknown_space_of_a_sweep_is_pointed_at() -> None:
    with pytest.raises(InvalidDocument) as caught:
        resolve_sweep({"name": "s", "space": "care-cifar1", "num_trials": 40})
    (problem,) = caught.value.problems
    assert (problem.pointer, problem.value) == ("/space", '"care-cifar1"')
    assert problem.detail == "unknown; did you mean 'care-cifar10'?"


def test_a_named_space_and_another_mistake() -> None:
    with pytest.raises(InvalidDocument, match="/num_trials: should be greater than or equal to 1"):
        resolve_sweep({"name": "s", "space": "care-cifar10", "num_trials": 0})


@pytest.mark.parametrize("document", [None, [], "care-cifar10", 3, {"space": 3}])
def test_what_is_no_sweep_is_refused(document: Any) -> None:
    with pytest.raises(InvalidDocument):
        resolve_sweep(document)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("<<", "<<"),
        ("[1, {b: 2}]", [1, {"b": 2}]),
        ("-.inf", -math.inf),
    ],
)
def test_plain_words_of_yaml(text: str, value: Any) -> None:
    assert read_document(f"a: {text}") == {"a": value}


def test_a_document_may_be_bytes_with_a_byte_order_mark() -> None:
    assert read_document(b"\xef\xbb\xbf" + "name: é".encode()) == {"name": "é"}
    assert read_document('{"name": "\\ud83d\\ude00"}') == {"name": "😀"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1, b: [x, 1e-3]}", {"a": 1, "b": ["x", 1e-3]}),
        ("{a: 1}  # a comment", {"a": 1}),
        ('{"a": 1,\n "b": 2,}', {"a": 1, "b": 2}),
        ("[a, {b: no}]", ["a", {"b": "no"}]),
    ],
)
def test_a_brace_may_begin_yaml(text: str, value: Any) -> None:
    assert read_document(text) == value


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("a: 1\nb: [1,\n", "line 3, column 1: while parsing a flow node: expected the node content"),
        ("a: 1\n b: 2", "line 2, column 3: mapping values are not allowed here"),
        ("a: &x 1", "line 1, column 4: anchors and aliases are not allowed; write the value out"),
        ("a: 1\nb: *x", "line 2, column 4: anchors and aliases are not allowed; write the value out"),
        ("a: !!python/name:os.system", "line 1, column 4: the tag tag:yaml.org,2002:python/name:os.system"),
        ("a: !!binary aGk=", "line 1, column 4: the tag"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
        ("1: 2", "line 1, column 1: a key must be a string; put it in quotes"),
        ("? [a]\n: 2", "line 1, column 3: a key must be a string"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document"),
        ("a: 1\nb: \0", "line 2, column 4: the character U+0000 is not allowed"),
        (b"a: 1\nb: c\xff", "line 2, column 5: is not UTF-8"),
        ("a: " + "9" * 5000, "line 1, column 4: the number is too long"),
        ("- " * 5000, "is nested too deeply"),
        ("a: " + "x" * 262_144, "is 262147 bytes long; at most 262144 are read"),
        ('{"a": 1\n "b": 2}', "line 2, column 2: Expecting ',' delimiter"),
        ('{"a": 1} {}', "line 1, column 10: Extra data"),
        ('{\n\t"a": 1\n\t"b": 2}', "line 3, column 2: Expecting ',' delimiter"),
        ("{a: 1, b: [}", "line 1, column 12: while parsing a flow node"),
        ("{a: &x 1}", "line 1, column 5: anchors and aliases are not allowed; write the value out"),
        ('{"a": "' + "x" * 300_000 + '", b: 1}', "line 1, column 300011: Expecting property name"),
        ('{"a": "' + "é" * 200_000 + '", b: 1}', "line 1, column 200011: Expecting property name"),
        ('{"a": 1,\n "a": 2}', "line 2, column 2: the key 'a' stands twice"),
        ('{"b": "' + "x" * 300_000 + '", "a": 1, "a": 2}', "a key stands twice"),
        ('{"a": ' + "9" * 5000 + "}", "line 1, column 7: the number is too long"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": "' + "x" * 1_048_576 + '"}', "is 1048585 bytes long; at most 1048576 are read"),
        ('{"a": "\\ud800"}', "holds half of a surrogate pair, which is no character"),
        ('a: "\\ud800"', "holds half of a surrogate pair, which is no character"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str | bytes, detail: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        read_document(text)
    (problem,) = caught.value.problems
    assert problem.pointer == ""
    assert detail in problem.detail


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@given(st.dictionaries(st.text(), documents) | st.lists(documents))
def test_json_is_read_as_json_reads_it(document: Any) -> None:
    assert read_document(json.dumps(document)) == document


@given(st.text() | st.binary() | st.text("{}[]:,-?&*!|>'\"%@#\\ \n\tab10.e+<=~"))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        json.dumps(read_document(text))
    except InvalidDocument as error:
        assert error.problems
