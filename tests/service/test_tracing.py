"""Spans of requests reach a collector, where one is named; elsewhere nothing that sends them is loaded."""

import subprocess
import sys
from pathlib import Path

import httpx2
from conftest import Recorder, run_python, service_process
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_a_collector_receives_a_span_of_each_request(recorder: Recorder, tmp_path: Path) -> None:
    recorder.answer = (200, {"Content-Type": "application/x-protobuf"}, b"")
    with service_process(tmp_path / "home", **{ENDPOINT: recorder.url}) as service:
        for path in ("/v1/sweeps/absent", "/healthz", "/metrics"):
            httpx2.get(service.url + path)
    sent = [ExportTraceServiceRequest.FromString(one.body) for one in recorder.arrived]
    assert {(one.method, one.path) for one in recorder.arrived} == {("POST", "/v1/traces")}
    resources = [resource for request in sent for resource in request.resource_spans]
    spans = [span for one in resources for scope in one.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["GET /v1/sweeps/{sweep_id}"], "probes have none"
    told = {a.key: a.value.string_value for one in resources for a in one.resource.attributes}
    assert told["service.name"] == "care-sweep"


def test_without_a_collector_nothing_that_sends_is_loaded() -> None:
    begun = "import sys, service.__main__ as started; started.tracer_provider({})"
    assert run_python(f"{begun}; print('opentelemetry.sdk' in sys.modules)") == "False"


def test_without_its_packages_the_service_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry.exporter'] = None; "
        "from service.__main__ import main; sys.argv = ['service', '--port', '0']; sys.exit(main())"
    )
    environment = {"CARE_SWEEP_HOME": str(tmp_path), ENDPOINT: "http://127.0.0.1:1", "PATH": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'care-sweep[opentelemetry]'" in done.stderr
    assert ENDPOINT in done.stderr
    assert "Traceback" not in done.stderr
