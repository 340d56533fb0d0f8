"""What must not be lost: sweeps, trials, measurements, events, leases and tokens, in one SQL database."""

from care_sweep.store.database import observe_transactions, open_database
from care_sweep.store.figures import Figures, HeldFigures, installation_figures
from care_sweep.store.lease import Lease
from care_sweep.store.records import (
    AttemptRecord,
    AuditRecord,
    Caller,
    ClusterRecord,
    DemandRecord,
    EventRecord,
    HoldRecord,
    MeasurementRecord,
    OutcomeRecord,
    Page,
    Quota,
    Scope,
    SweepRecord,
    TokenRecord,
    TrialRecord,
    Wishes,
)
from care_sweep.store.sweeps import Store
from care_sweep.store.tokens import Tokens

__all__ = [
    "AttemptRecord",
    "AuditRecord",
    "Caller",
    "ClusterRecord",
    "DemandRecord",
    "EventRecord",
    "Figures",
    "HeldFigures",
    "HoldRecord",
    "Lease",
    "MeasurementRecord",
    "OutcomeRecord",
    "Page",
    "Quota",
    "Scope",
    "Store",
    "SweepRecord",
    "TokenRecord",
    "Tokens",
    "TrialRecord",
    "Wishes",
    "installation_figures",
    "observe_transactions",
    "open_database",
]
