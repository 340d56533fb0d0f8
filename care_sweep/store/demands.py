"""Who wants how much of the cluster, and what may their tokens take? Inside a transaction."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter

from sqlalchemy import Connection, func, select

from care_sweep.errors import QuotaExceeded
from care_sweep.spec import Place, Spot, SweepState, TrialState
from care_sweep.store.ending import OPEN_STATES
from care_sweep.store.records import Caller, DemandRecord
from care_sweep.store.rows import counts_of_trials
from care_sweep.store.schema import attempts, sweeps, tokens, trials

__all__ = ["demands_of_all", "require_quota"]

_ACTIVE = (SweepState.RUNNING, SweepState.STOPPING)


def demands_of_all(connection: Connection) -> Sequence[DemandRecord]:
    """What each sweep that somebody drives wants, in order of acceptance."""
    is_active = sweeps.c.state.in_(list(_ACTIVE)) & sweeps.c.lease_owner.is_not(None)
    query = (
        select(
            sweeps.c.sequence,
            sweeps.c.id,
            sweeps.c.state,
            sweeps.c.spec,
            sweeps.c.gpus_per_trial,
            sweeps.c.share_seconds,
            sweeps.c.priority,
            sweeps.c.is_ready,
            sweeps.c.token_id,
            tokens.c.max_concurrent_trials,
            (tokens.c.gpu_seconds >= 3600 * tokens.c.max_gpu_hours).label("is_quota_spent"),
        )
        .outerjoin(tokens, tokens.c.id == sweeps.c.token_id)
        .where(is_active)
    )
    rows = sorted(connection.execute(query), key=attrgetter("sequence"))
    ids = [row.id for row in rows]
    counts = counts_of_trials(connection, ids) if rows else {}
    places = _places(connection, ids)
    found = []
    for row in rows:
        spec, of_state = row.spec, counts[row.id]
        resources = spec["resources"]
        num_running = of_state.get(TrialState.RUNNING, 0)
        num_left = 0 if row.state == SweepState.STOPPING else spec["num_trials"] - sum(of_state.values())
        num_wanted = sum(of_state.get(state, 0) for state in OPEN_STATES) + max(0, num_left)
        if not row.is_ready:
            num_wanted = num_running
        gpus = resources["gpus_per_trial"]
        if gpus == "auto":
            gpus = row.gpus_per_trial
            if gpus is None:  # it is ready for the timing, which holds one
                num_wanted = min(num_wanted, 1)
        found.append(
            DemandRecord(
                id=row.id,
                priority=row.priority,
                cpus_per_trial=resources["cpus_per_trial"],
                gpus_per_trial=gpus,
                num_wanted=min(num_wanted, spec["max_concurrent_trials"] or num_wanted),
                num_running=num_running,
                places=places[row.id],
                share_seconds=row.share_seconds,
                token_id=row.token_id,
                max_concurrent_trials=row.max_concurrent_trials,
                is_quota_spent=bool(row.is_quota_spent),
            )
        )
    return found


def _places(connection: Connection, sweep_ids: Sequence[str]) -> Mapping[str, Mapping[Spot, int]]:
    """How many trials of each sweep run where, as far as their attempts have said."""
    of_trial = (attempts.c.sweep_id == trials.c.sweep_id) & (attempts.c.trial_number == trials.c.number)
    query = (
        select(trials.c.sweep_id, attempts.c.place)
        .join(attempts, of_trial & (attempts.c.attempt == trials.c.attempt))
        .where(trials.c.sweep_id.in_(list(sweep_ids)), trials.c.state == TrialState.RUNNING)
    )
    places: dict[str, Counter[Spot]] = defaultdict(Counter)
    for sweep_id, place in connection.execute(query):
        if place is not None:
            places[sweep_id][Place.model_validate(place).spot] += 1
    return places


def require_quota(connection: Connection, caller: Caller | None) -> None:
    """Raise QuotaExceeded where the caller's token may have no further sweep."""
    token_id = None if caller is None else caller.token_id
    if token_id is None:
        return
    token = connection.execute(
        select(tokens).where(tokens.c.id == token_id).with_for_update()  # who come at once wait
    ).one_or_none()
    if token is None:
        return
    if token.max_gpu_hours is not None and token.gpu_seconds >= 3600 * token.max_gpu_hours:
        raise QuotaExceeded(
            f"the sweeps of this token have taken {token.gpu_seconds / 3600:.4g} GPU hours, and its quota is "
            f"{token.max_gpu_hours:g}; an operator can make a token with more"
        )
    if token.max_sweeps is None:
        return
    of_token = (sweeps.c.token_id == token_id) & sweeps.c.finished_at.is_(None)
    num_sweeps = connection.execute(select(func.count()).where(of_token)).scalar_one()
    if num_sweeps >= token.max_sweeps:
        raise QuotaExceeded(
            f"{num_sweeps} sweeps of this token have not ended, and its quota is {token.max_sweeps}; "
            "cancel one or wait for its end"
        )
