"""How many trials may each sweep run at once? What the cluster has, divided by priority: pure functions.

Every driver computes the same division from the nodes and the store, and keeps to its own part of it.
Priorities weigh dominant shares (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): a trial takes the
largest of its shares of the cluster's CPUs and GPUs. Whole trials of a sweep's part are its own at once. The
parts of trials that are left over go in turns to who has had least for its priority, and so does room for a
trial so large that no whole one is due to its sweep.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from care_sweep.store import DemandRecord

__all__ = ["UNSHARED", "Share", "capacity_of", "divide"]

TURN_SECONDS = 60.0
"""What is taken in turns changes hands once its holder is this far ahead: each change costs a start."""

_OWED_TURNS = 1.01  # to who comes late: the next trial to report makes room
_MOST_OWED_TURNS = 10.0  # to who had less than its part, for whatever reason
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Share:
    """What one sweep may run, and what that counts for.

    Attributes:
        num_trials: at once.
        cost: share seconds of one trial's second: its dominant share, over the sweep's priority.
        least: share seconds that the sweep is taken to have had, so that no more than turns are owed to it.
    """

    num_trials: int
    cost: float = 0.0
    least: float = 0.0


UNSHARED = Share(num_trials=2**31)
"""Before the first look at the cluster, and where there is none."""


@dataclass(frozen=True)
class _Claim:
    """A demand, `wanted` of each resource for a trial, `most` trials that could run.

    In share seconds: `had` so far, `cost` of a trial's second, `turn` of a trial's turn, which is as many for
    all priorities: a low one's is soon over.
    """

    demand: DemandRecord
    wanted: Mapping[str, float]
    most: int
    cost: float
    turn: float
    had: float

    def turn_of(self, num_trials: int) -> float:
        return self.turn * num_trials


def divide(nodes: Sequence[Mapping[str, float]], demands: Sequence[DemandRecord]) -> Mapping[str, Share]:
    """The share of each sweep, by its id.

    Args:
        nodes: the resources of each living node, as Ray names them ("CPU", "GPU").
        demands: of the active sweeps, in order of acceptance: of equals the first comes first.
    """
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    highest = max((demand.priority for demand in demands), default=1.0)
    claims = _with_least([_claim(demand, nodes, total, highest) for demand in demands])
    limits = {
        demand.token_id: demand.max_concurrent_trials
        for demand in demands
        if demand.token_id is not None and demand.max_concurrent_trials is not None
    }
    granted = _granted(nodes, claims, _ideal(total, limits, claims), limits)
    return {claim.demand.id: Share(granted[claim.demand.id], claim.cost, claim.had) for claim in claims}


def capacity_of(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """How many trials of `wanted` fit on the nodes; a trial does not span two, nor a part of a GPU."""
    return sum(_Node(node).fitting(wanted) for node in nodes)


class _Node:
    """What is free on a node: CPUs, and of each GPU how much."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self.cpus = resources.get("CPU", 0.0)
        self.gpus = [1.0] * int(resources.get("GPU", 0.0))

    def fitting(self, wanted: Mapping[str, float]) -> int:
        """How many more trials of `wanted` fit."""
        by_cpus = math.floor(self.cpus / wanted["CPU"] + _ROUNDING)
        gpus = wanted["GPU"]
        if gpus > 1:
            return min(by_cpus, sum(free > 1 - _ROUNDING for free in self.gpus) // round(gpus))
        if gpus:
            return min(by_cpus, sum(math.floor(free / gpus + _ROUNDING) for free in self.gpus))
        return by_cpus

    def take(self, wanted: Mapping[str, float], number: int) -> None:
        """Have so many trials less room, the fullest GPUs first."""
        self.cpus -= number * wanted["CPU"]
        gpus = wanted["GPU"]
        for _ in range(number if gpus else 0):
            least = min(gpus, 1.0) - _ROUNDING
            fit = sorted((free, index) for index, free in enumerate(self.gpus) if free >= least)
            for _, index in fit[: math.ceil(gpus)]:
                self.gpus[index] -= min(gpus, 1.0)


def _claim(
    demand: DemandRecord,
    nodes: Sequence[Mapping[str, float]],
    total: Mapping[str, float],
    highest_priority: float,
) -> _Claim:
    gpus = demand.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if total["GPU"] else 0.0
    wanted = {"CPU": float(demand.cpus_per_trial), "GPU": gpus}
    most = min(demand.num_wanted, capacity_of(nodes, wanted))
    part = max((wanted[name] / total[name] for name in wanted if total[name]), default=0.0)
    turn = TURN_SECONDS * part / highest_priority
    return _Claim(demand, wanted, most, part / demand.priority, turn, demand.share_seconds)


def _with_least(claims: Sequence[_Claim]) -> Sequence[_Claim]:
    """No debt is older than some turns; who has had nothing yet was not there, and is owed one."""
    most = max((claim.had - _MOST_OWED_TURNS * _held_turn(claim) for claim in claims), default=0.0)
    there = [replace(claim, had=max(claim.had, most)) for claim in claims if claim.had]
    least = min((claim.had - _OWED_TURNS * _held_turn(claim) for claim in there), default=0.0)
    known = {claim.demand.id: claim for claim in there}
    return [known.get(claim.demand.id, replace(claim, had=max(0.0, least))) for claim in claims]


def _held_turn(claim: _Claim) -> float:
    return claim.turn_of(max(1, claim.demand.num_running))


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
    """Whole trials that fit on the nodes together: the whole part of each ideal, then one after another.

    Who has had least comes first, so that what does not fit beside others has its turn.
    """
    free = [_Node(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0.0))]
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

    for claim in sorted(claims, key=_standing):
        whole = math.floor(ideal[claim.demand.id] + _ROUNDING)
        has_precedence = ideal[claim.demand.id] > 0 and not any(granted.values())
        grant(claim, whole or int(has_precedence))
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
    return has_its_due, claim.had - claim.turn_of(int(holds_it))


def _standing(claim: _Claim) -> float:
    """Share seconds, less a turn of what runs, which is not ended for less."""
    return claim.had - claim.turn_of(claim.demand.num_running)


def _place(free: Sequence[_Node], wanted: Mapping[str, float], number: int) -> int:
    """Put as many of `number` trials on the nodes as fit, which then have less free."""
    placed = 0
    for node in free:
        here = max(0, min(node.fitting(wanted), number - placed))
        node.take(wanted, here)
        placed += here
    return placed
