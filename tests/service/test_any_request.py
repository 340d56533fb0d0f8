"""Any request at all, made from the OpenAPI document: no answer of 5xx, and none that the document lacks."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import pytest
import schemathesis
from conftest import opened
from fabrication import Fabricator
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import create_engine

from care_sweep.settings import Settings
from care_sweep.store import Store
from service.app import create_app

pytestmark = pytest.mark.full

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

SCHEMA = schemathesis.openapi.from_dict(
    create_app(Settings.from_environment({}), Store(create_engine("sqlite://"))).openapi()
)
STATUSES: Counter[int] = Counter()
KNOWN: dict[str, list[str]] = {"number": ["0", "1"], "name": ["cifar10-mini"]}


@pytest.fixture(scope="module", autouse=True)
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A service with sweeps in it."""
    own = Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path_factory.mktemp("any"))})
    with opened(own) as store:
        fabricate, SCHEMA.app = Fabricator(store, own.storage_uri), create_app(own, store)
        SCHEMA.app.state.closing.set()  # so that no stream goes on
        lease = fabricate.claimed()
        lease.start_attempt(0, 1, {"temperature": 0.5}, is_baseline=True)
        fabricate.log(lease.sweep_id, 0, "it begins\n")
        KNOWN["sweep_id"] = [lease.sweep_id, fabricate.finished(), fabricate.queued().id]
        yield


def _chosen(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Two in three of the names that were made up name what is there."""
    chosen = {}
    for name, value in (values or {}).items():
        number = crc32(repr(value).encode())
        known = KNOWN.get(name, [value])
        chosen[name] = known[number // 3 % len(known)] if number % 3 else value
    return chosen


@SCHEMA.parametrize()
@hypothesis_settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_any_request_is_answered_as_the_document_says(case: schemathesis.Case) -> None:
    case.path_parameters = _chosen(case.path_parameters)
    response = case.call(app=SCHEMA.app)
    STATUSES[response.status_code] += 1
    case.validate_response(response, checks=CHECKS)


def test_there_were_as_many_as_is_said() -> None:
    print(f"{STATUSES.total()} requests: {dict(sorted(STATUSES.items()))}")
    assert STATUSES.total() >= 2000
    assert {200, 201, 202, 204, 404, 415, 422} <= set(STATUSES)
