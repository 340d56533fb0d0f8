"""What must not be lost: sweeps, trials, measurements, events and leases, in one SQL database."""

from care_sweep.store.database import open_database
from care_sweep.store.lease import Lease
from care_sweep.store.records import (
    AttemptRecord,
    ClusterRecord,
    EventRecord,
    HoldRecord,
    MeasurementRecord,
    Page,
    SweepRecord,
    TrialRecord,
    Wishes,
)
from care_sweep.store.sweeps import Store

__all__ = [
    "AttemptRecord",
    "ClusterRecord",
    "EventRecord",
    "HoldRecord",
    "Lease",
    "MeasurementRecord",
    "Page",
    "Store",
    "SweepRecord",
    "TrialRecord",
    "Wishes",
    "open_database",
]
