"""Any request at all, made from the OpenAPI document: no answer of 5xx, and none that the document lacks."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from conftest import DocumentedClient, opened
from fabrication import Fabricator, document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from care_sweep.settings import Settings
from care_sweep.store import Store
from service.app import create_app

CASES_EACH = 100
"""Of each operation; there are more than twenty."""

_OPENAPI = create_app(Settings.from_environment({}), Store(create_engine("sqlite://"))).openapi()
OPERATIONS = [(method, path) for path, methods in _OPENAPI["paths"].items() for method in methods]

_text = st.text(max_size=20)
_header_text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=10,
)
_GOOD: Mapping[str, Any] = {
    "/v1/sweeps": document(),
    "/v1/sweeps/{sweep_id}": {"num_trials": 9},
    "/v1/sweeps/{sweep_id}/trials": {"parameters": {"temperature": 0.2}},
}


def _of_schema(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """Texts of a parameter: those that its schema means, and any."""
    match schema:
        case {"$ref": reference}:
            found = _of_schema(_OPENAPI["components"]["schemas"][reference.rpartition("/")[2]])
        case {"anyOf": several}:
            found = st.one_of([_of_schema(one) for one in several])
        case {"enum": names}:
            found = st.sampled_from(names)
        case {"type": "array", "items": items}:
            found = _of_schema(items)
        case {"type": "boolean"}:
            found = st.sampled_from(["true", "false", "maybe"])
        case {"type": "integer"}:
            found = st.integers(-1, 10**20).map(str) | st.integers(0, 3).map(str)
        case {"pattern": pattern}:
            found = st.from_regex(pattern, fullmatch=True)
        case _:
            found = _text
    return found


@st.composite
def _changed(draw: st.DrawFn, good: Any) -> Any:
    """A good document with something else in one place."""
    if not isinstance(good, dict) or not good or draw(st.integers(0, 3)) == 0:
        return draw(_values)
    key = draw(st.sampled_from([*good, "new"]))
    return {**good, key: draw(_changed(good.get(key)))}


@st.composite
def _requests(draw: st.DrawFn, method: str, path: str) -> dict[str, Any]:
    """The parameters, headers and body of one request."""
    parameters = _OPENAPI["paths"][path][method].get("parameters", [])
    names = [p["name"] for p in parameters if p["in"] == "path"]
    given: dict[str, Any] = {"path": {name: draw(_PATH_VALUES.get(name, _text)) for name in names}}
    for place, anything in (("query", _text), ("header", _header_text)):
        chosen = [p for p in parameters if p["in"] == place and draw(st.booleans())]
        given[place] = [(p["name"], draw(_of_schema(p["schema"]) | anything)) for p in chosen]
    if draw(st.integers(0, 9)) == 0:
        given["query"].append((draw(_text), draw(_text)))
    if "requestBody" in _OPENAPI["paths"][path][method]:
        sent = draw(st.just(_GOOD[path]) | _changed(_GOOD[path]) | _values)
        given["body"] = json.dumps(sent).encode() if draw(st.integers(0, 9)) else draw(st.binary(max_size=50))
        types = ["application/json", "application/yaml", "text/plain", ""]
        given["header"].append(("Content-Type", draw(st.sampled_from(types))))
    return given


_PATH_VALUES: Mapping[str, st.SearchStrategy[str]] = {
    "sweep_id": st.sampled_from(["finished", "queued", "running"]) | _text,
    "number": st.integers(-1, 5).map(str) | _text,
    "name": st.sampled_from(["cifar10-mini"]) | _text,
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that sends such a request; `finished`, `queued` and `running` are sweeps that are there."""
    home = tmp_path_factory.mktemp("any")
    own = Settings.from_environment({"CARE_SWEEP_HOME": str(home)})
    with opened(own) as store:
        fabricate, app = Fabricator(store, own.storage_uri), create_app(own, store)
        app.state.closing.set()  # so that no stream goes on
        known: dict[str, str] = {}

        def renew() -> None:
            lease = fabricate.claimed()
            lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
            fabricate.log(lease.sweep_id, 0, "it begins\n")
            known.update(finished=fabricate.finished(), queued=fabricate.queued().id, running=lease.sweep_id)

        with DocumentedClient(app, raise_server_exceptions=False) as http:

            def ask(method: str, path: str, given: Mapping[str, Any]) -> int:
                filled = {
                    name: quote(known.get(value, value), safe="", errors="replace")
                    for name, value in given["path"].items()
                }
                url = path.format(**filled) + "?" + urlencode(given["query"], errors="replace")
                headers = {name: value.encode(errors="replace") for name, value in given["header"]}
                status: int = http.request(
                    method, url, headers=headers, content=given.get("body")
                ).status_code
                return status

            yield ask, renew


STATUSES: Counter[int] = Counter()


@pytest.mark.full
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_any_request_is_answered_as_the_document_says(asked: Any, method: str, path: str) -> None:
    ask, renew = asked

    @settings(
        max_examples=CASES_EACH,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_requests(method, path))
    def all_of_them(given: Mapping[str, Any]) -> None:
        status = ask(method, path, given)  # an undocumented one fails in there
        STATUSES[status] += 1
        assert status < 500

    renew()
    all_of_them()


@pytest.mark.full
def test_there_were_as_many_as_is_said() -> None:
    print(f"{STATUSES.total()} requests: {dict(sorted(STATUSES.items()))}")
    assert STATUSES.total() >= 2000
    assert {200, 201, 202, 204, 404, 415, 422} <= set(STATUSES)
