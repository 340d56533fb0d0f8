"""Any document at all is accepted or refused, and every place that is named is in it."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from care_sweep.documents import parse
from care_sweep.errors import InvalidDocument
from care_sweep.spec import SearchSpace, SweepSpec, TrialConfig

_words = st.sampled_from(
    [
        *SweepSpec.model_fields,
        *SearchSpace.model_fields,
        *TrialConfig.model_fields,
        *("type", "low", "high", "log", "choices", "when", "default"),
        *("float", "int", "categorical", "none", "auto"),
    ]
)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _words
_documents = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_words | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
_ranges = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "int"])},
    optional={
        key: _scalars | st.floats(0, 10) | st.integers(0, 10) for key in ("low", "high", "default", "log")
    }
    | {"when": _documents},
)
_choices = st.fixed_dictionaries(
    {"type": st.just("categorical"), "choices": st.lists(_scalars, max_size=4)},
    optional={
        "default": _scalars,
        "when": st.dictionaries(_words, _scalars | st.lists(_scalars), max_size=2),
    },
)
_spaces = st.fixed_dictionaries(
    {"parameters": st.dictionaries(_words, _ranges | _choices | _documents, max_size=4)},
    optional={
        "fixed": st.dictionaries(_words, _scalars, max_size=3) | _documents,
        "baselines": st.lists(st.dictionaries(_words, _scalars, max_size=3), max_size=3) | _documents,
    },
)
_sweeps = st.fixed_dictionaries(
    {"name": st.just("s"), "space": _spaces | _documents, "num_trials": st.integers(0, 9) | _documents},
    optional=dict.fromkeys(("metric", "seed", "early_stopping", "resources", "budget"), _documents),
)


def is_place(document: Any, pointer: str) -> bool:
    """The pointer leads to something in the document, or to a key that is missing from it."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]] or [None]
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return last is None or isinstance(document, dict) or int(last) < len(document)


@given(_sweeps | _documents)
def test_any_document_is_accepted_or_refused_with_its_places(document: Any) -> None:
    try:
        spec = parse(SweepSpec, document)
    except InvalidDocument as error:
        assert error.problems
        assert all(problem.detail for problem in error.problems)
        json.dumps([problem.to_json() for problem in error.problems])
    else:
        assert parse(SweepSpec, json.loads(spec.model_dump_json())) == spec
        for baseline in spec.space.baselines:
            spec.space.trial_config(spec.space.baseline_values(baseline))


@given(_sweeps)
def test_every_pointer_leads_into_the_document(document: Any) -> None:
    try:
        parse(SweepSpec, document)
    except InvalidDocument as error:
        for problem in error.problems:
            assert is_place(document, problem.pointer), problem
