"""How many trials may each sweep run at once? What the cluster has, divided by priority: pure functions.

Every driver computes the same division from the nodes and the store, and keeps to its own part of it.
Priorities weigh dominant shares (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): a trial takes the
largest of its shares of the cluster's CPUs and GPUs. Whole trials of a sweep's part are its own at once. The
parts of trials that are left over go in turns to who has had least for its priority.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from care_sweep.store import DemandRecord

__all__ = ["UNSHARED", "Share", "capacity_of", "divide"]

TURN_SECONDS = 60.0
"""What is taken in turns changes hands once its holder is this far ahead: each change costs a start."""

_OWED_TURNS = 1.01  # to who comes late: the next trial to report makes room
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Share:
    """What one sweep may run, and what that counts for.

    Attributes:
        num_trials: at once.
        cost: share seconds of one trial's second: its dominant share, over the sweep's priority.
        least: share seconds that the sweep is taken to have had, so that no more than a turn is owed to it.
    """

    num_trials: int
    cost: float = 0.0
    least: float = 0.0


UNSHARED = Share(num_trials=2**31)
"""Before the first look at the cluster, and where there is none."""


@dataclass(frozen=True)
class _Claim:
    demand: DemandRecord
    wanted: Mapping[str, float]  # of each resource, for one trial
    most: int
    cost: float
    had: float = 0.0

    @property
    def weight(self) -> float:
        return self.demand.priority


def divide(nodes: Sequence[Mapping[str, float]], demands: Sequence[DemandRecord]) -> Mapping[str, Share]:
    """The share of each sweep, by its id.

    Args:
        nodes: the resources of each living node, as Ray names them ("CPU", "GPU").
        demands: of the active sweeps, in order of acceptance: of equals the first comes first.
    """
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    claims = _with_least([_claim(demand, nodes, total) for demand in demands])
    limits = {
        demand.token_id: demand.max_concurrent_trials
        for demand in demands
        if demand.token_id is not None and demand.max_concurrent_trials is not None
    }
    granted = _granted(nodes, claims, _ideal(total, limits, claims), limits)
    return {claim.demand.id: Share(granted[claim.demand.id], claim.cost, claim.had) for claim in claims}


def capacity_of(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """How many trials of `wanted` fit on the nodes; a trial does not span two."""
    return sum(_fitting(node, wanted) for node in nodes)


def _fitting(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    asked = [(name, amount) for name, amount in wanted.items() if amount]
    return min(math.floor(node.get(name, 0.0) / amount + _ROUNDING) for name, amount in asked)


def _claim(demand: DemandRecord, nodes: Sequence[Mapping[str, float]], total: Mapping[str, float]) -> _Claim:
    gpus = demand.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if total["GPU"] else 0.0
    wanted = {"CPU": float(demand.cpus_per_trial), "GPU": gpus}
    most = min(demand.num_wanted, capacity_of(nodes, wanted))
    part = max((wanted[name] / total[name] for name in wanted if total[name]), default=0.0)
    return _Claim(demand, wanted, most, part / demand.priority, demand.share_seconds)


def _with_least(claims: Sequence[_Claim]) -> Sequence[_Claim]:
    """Who has had nothing yet was not there: it is owed a turn, and not all that the others have had."""

    def late(claim: _Claim) -> float:
        had = (one.had - _OWED_TURNS * TURN_SECONDS * one.cost for one in claims if one is not claim)
        return max((0.0, *had))

    return [claim if claim.had else replace(claim, had=late(claim)) for claim in claims]


def _ideal(
    total: Mapping[str, float], limits: Mapping[str, int], claims: Sequence[_Claim]
) -> Mapping[str, float]:
    """Trials of each sweep, as real numbers: all shares grow by their weights until something is used up.

    A token's limit is one more thing that its sweeps use up.
    """
    left: dict[str, float] = {**total, **{f"token {token}": float(limit) for token, limit in limits.items()}}
    uses = {claim.demand.id: dict(claim.wanted) for claim in claims}
    for claim in claims:
        if claim.demand.token_id in limits:
            uses[claim.demand.id][f"token {claim.demand.token_id}"] = 1.0
    found = dict.fromkeys(uses, 0.0)
    growing = [claim for claim in claims if claim.most]
    while growing:
        speeds = {claim.demand.id: 1 / claim.cost for claim in growing}
        drain = {name: sum(speeds[key] * uses[key].get(name, 0.0) for key in speeds) for name in left}
        until_full = ((claim.most - found[claim.demand.id]) * claim.cost for claim in growing)
        until_empty = (left[name] / amount for name, amount in drain.items() if amount)
        step = min(*until_full, *until_empty)
        for key, speed in speeds.items():
            found[key] += step * speed
        for name, amount in drain.items():
            left[name] -= step * amount
        empty = {name for name, amount in drain.items() if amount and left[name] <= _ROUNDING * amount}
        growing = [
            claim
            for claim in growing
            if found[claim.demand.id] < claim.most - _ROUNDING
            and not any(uses[claim.demand.id].get(name) for name in empty)
        ]
    return found


def _granted(
    nodes: Sequence[Mapping[str, float]],
    claims: Sequence[_Claim],
    ideal: Mapping[str, float],
    limits: Mapping[str, int],
) -> Mapping[str, int]:
    """Whole trials that fit on the nodes together: the whole part of each ideal, then one after another."""
    free = [dict(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0.0))]
    granted = dict.fromkeys(ideal, 0)
    of_token = dict.fromkeys(limits, 0)

    def grant(claim: _Claim, number: int) -> bool:
        token = claim.demand.token_id
        if token is not None and token in limits:
            number = min(number, limits[token] - of_token[token])
        placed = _place(free, claim.wanted, number)
        granted[claim.demand.id] += placed
        if token is not None and token in limits:
            of_token[token] += placed
        return placed > 0

    for claim in sorted(claims, key=lambda claim: -claim.cost * claim.weight):  # what is large fits first
        grant(claim, math.floor(ideal[claim.demand.id] + _ROUNDING))
    waiting = list(claims)
    while waiting:
        waiting = [claim for claim in waiting if granted[claim.demand.id] < claim.most]
        for claim in sorted(waiting, key=lambda claim: _turn(claim, granted, ideal)):
            if grant(claim, 1):
                break
        else:
            return granted
    return granted


def _turn(claim: _Claim, granted: Mapping[str, int], ideal: Mapping[str, float]) -> tuple[bool, float]:
    """Who comes first: to whom a part of a trial is due before who has all that is, then who has had least.

    Who runs that trial already keeps it for a turn.
    """
    number = granted[claim.demand.id]
    holds_it = claim.demand.num_running > number
    has_its_due = number >= ideal[claim.demand.id] - _ROUNDING
    return has_its_due, claim.had - (TURN_SECONDS * claim.cost if holds_it else 0.0)


def _place(free: Sequence[dict[str, float]], wanted: Mapping[str, float], number: int) -> int:
    """Put as many of `number` trials on the nodes as fit, which then have less free."""
    placed = 0
    for node in free:
        here = max(0, min(_fitting(node, wanted), number - placed))
        for name, amount in wanted.items():
            node[name] = node.get(name, 0.0) - here * amount
        placed += here
    return placed
