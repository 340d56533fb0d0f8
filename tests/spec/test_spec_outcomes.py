"""What an epoch reported is finite and named; a state is an end or not."""

import json
import math

from drafts import problems

from care_sweep.documents import parse
from care_sweep.spec import CheckpointReference, Measurement, SweepState, TrialState


def test_a_measurement_is_finite_and_its_checkpoint_named() -> None:
    checkpoint = {"name": "attempt-1/final.tar", "sha256": "0" * 64, "size_bytes": 1}
    document = {"epoch": 1, "metrics": {"train_loss": 1.5}, "seconds": 0.2, "checkpoint": checkpoint}
    measurement = parse(Measurement, document)
    assert measurement.checkpoint == CheckpointReference(**checkpoint)
    assert parse(Measurement, json.loads(measurement.model_dump_json())) == measurement
    (problem,) = problems(Measurement, document | {"metrics": {"train_loss": math.nan}})
    assert (problem.pointer, problem.value) == ("/metrics/train_loss", "nan")
    (problem,) = problems(Measurement, document | {"checkpoint": checkpoint | {"sha256": "ABC"}})
    assert problem.pointer == "/checkpoint/sha256"


def test_states_are_terminal_or_not() -> None:
    assert {state for state in SweepState if state.is_terminal} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert {state for state in TrialState if not state.is_terminal} == {"WAITING", "RUNNING"}
