"""The vocabulary: what a sweep is, what may be searched, what a trial is told and what it answers.

Every document is a frozen pydantic model. Nothing here reads a clock, a file or an environment.
"""

from care_sweep.spec.config import FIELDS_OF_DEVICES, TrialConfig, misfit_of_devices
from care_sweep.spec.outcomes import CheckpointReference, Measurement, Place, Spot, SweepState, TrialState
from care_sweep.spec.parameters import CategoricalParameter, FloatParameter, IntParameter, Parameter, Scalar
from care_sweep.spec.space import SearchSpace
from care_sweep.spec.sweep import Budget, EarlyStopping, Resources, SweepSpec

__all__ = [
    "FIELDS_OF_DEVICES",
    "Budget",
    "CategoricalParameter",
    "CheckpointReference",
    "EarlyStopping",
    "FloatParameter",
    "IntParameter",
    "Measurement",
    "Parameter",
    "Place",
    "Resources",
    "Scalar",
    "SearchSpace",
    "Spot",
    "SweepSpec",
    "SweepState",
    "TrialConfig",
    "TrialState",
    "misfit_of_devices",
]
