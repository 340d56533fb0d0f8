"""How many trials may each sweep run at once? What the cluster has, divided by priority: pure functions.

Every driver computes the same division from the nodes and the store, and keeps to its own part of it.
Priorities weigh dominant shares (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): a trial takes the
largest of its shares of the cluster's CPUs and GPUs. Whole trials of a sweep's part are its own at once. The
parts of trials that are left over go in turns to who has had least for its priority, and so does room for a
trial so large that no whole one is due to its sweep. Where trials run is up to Ray, but for nodes and GPUs
on which a larger one is to have room.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from care_sweep.run.placing import Holding, Node, capacity_of, most_in_places
from care_sweep.spec import Spot
from care_sweep.store import DemandRecord

__all__ = ["UNSHARED", "Share", "divide"]

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
        at_most: of these trials on GPUs and nodes where a larger one of another sweep is to have room.
    """

    num_trials: int
    cost: float = 0.0
    least: float = 0.0
    at_most: Mapping[Spot, int] = field(default_factory=dict)

    def num_misplaced(self, places: Mapping[Spot, int]) -> int:
        """How many run where a larger one is to have room, of so many in each place."""
        return sum(max(0, number - self.at_most.get(spot, number)) for spot, number in places.items())

    def gives_way(self, spot: Spot | None, num_running: int, places: Mapping[Spot, int]) -> bool:
        """Whether a trial that reports from a place shall wait. So many run, where so far as is known."""
        if spot is not None and places.get(spot, 0) > self.at_most.get(spot, math.inf):
            return True
        return num_running - self.num_misplaced(places) > self.num_trials


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


def divide(nodes: Mapping[str, Mapping[str, float]], demands: Sequence[DemandRecord]) -> Mapping[str, Share]:
    """The share of each sweep, by its id.

    Args:
        nodes: the resources of each living node by its id, as Ray names them ("CPU", "GPU").
        demands: of the active sweeps, in order of acceptance: of equals the first comes first.
    """
    resources = list(nodes.values())
    total = {name: sum(node.get(name, 0.0) for node in resources) for name in ("CPU", "GPU")}
    highest = max((demand.priority for demand in demands), default=1.0)
    claims = _with_least([_claim(demand, resources, total, highest) for demand in demands])
    limits = {
        demand.token_id: demand.max_concurrent_trials
        for demand in demands
        if demand.token_id is not None and demand.max_concurrent_trials is not None
    }
    granted = _granted(resources, claims, _ideal(total, limits, claims), limits)
    at_most = most_in_places(nodes, [_holding(claim, granted[claim.demand.id]) for claim in claims])
    return {
        claim.demand.id: Share(granted[claim.demand.id], claim.cost, claim.had, at_most[claim.demand.id])
        for claim in claims
    }


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


def _holding(claim: _Claim, num_granted: int) -> Holding:
    demand = claim.demand
    return Holding(demand.id, claim.wanted, claim.turn, num_granted, demand.num_running, demand.places)


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
    free = [Node(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0.0))]
    granted = dict.fromkeys(ideal, 0)
    of_token = dict.fromkeys(limits, 0)

    def grant(claim: _Claim, number: int) -> bool:
        token = claim.demand.token_id
        if token is not None and token in limits:
            number = min(number, limits[token] - of_token[token])
        placed = 0
        for node in free:
            placed += node.take(claim.wanted, number - placed)
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
