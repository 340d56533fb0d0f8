"""Where do trials fit on nodes and GPUs, and whose must go so that a larger one fits? Pure functions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby

from care_sweep.spec import Spot

__all__ = ["Holding", "Node", "capacity_of", "most_in_places"]

_ROUNDING = 1e-9


class Node:
    """What is free on a node: CPUs, and of each GPU how much. `known` are the names of GPUs that have one."""

    def __init__(self, resources: Mapping[str, float], known: Sequence[str] = ()) -> None:
        self.cpus = resources.get("CPU", 0.0)
        others = range(len(known), int(resources.get("GPU", 0.0)))
        self.gpus = dict.fromkeys([*known, *(f"another {index}" for index in others)], 1.0)

    def fitting(self, wanted: Mapping[str, float], among: Sequence[str] = ()) -> int:
        """How many more trials of `wanted` fit, in all or on some of its GPUs."""
        free_gpus = [self.gpus[gpu] for gpu in among or self.gpus]
        by_cpus = math.floor(self.cpus / wanted["CPU"] + _ROUNDING)
        gpus = wanted["GPU"]
        if gpus > 1:
            return min(by_cpus, sum(free > 1 - _ROUNDING for free in free_gpus) // round(gpus))
        if gpus:
            return min(by_cpus, sum(math.floor(free / gpus + _ROUNDING) for free in free_gpus))
        return by_cpus

    def take(self, wanted: Mapping[str, float], most: int, among: Sequence[str] = ()) -> int:
        """Have up to `most` trials less room, the fullest GPUs first. How many fitted."""
        number = max(0, min(self.fitting(wanted, among), most))
        self.cpus -= number * wanted["CPU"]
        gpus = wanted["GPU"]
        for _ in range(number if gpus else 0):
            least = min(gpus, 1.0) - _ROUNDING
            fit = [gpu for gpu in among or self.gpus if self.gpus[gpu] >= least]
            for gpu in sorted(fit, key=lambda gpu: self.gpus[gpu])[: math.ceil(gpus)]:
                self.gpus[gpu] -= min(gpus, 1.0)
        return number

    def copy(self) -> "Node":
        other = Node({"CPU": self.cpus})
        other.gpus = dict(self.gpus)
        return other


@dataclass(frozen=True)
class Holding:
    """The trials of a sweep.

    Attributes:
        wanted: of each resource by one of them.
        size: of one of them, in the same unit for all sweeps.
        places: how many run on which GPUs of which node; of one that has just begun it is not known yet.
    """

    sweep_id: str
    wanted: Mapping[str, float]
    size: float
    num_granted: int
    num_running: int
    places: Mapping[Spot, int]


_Group = tuple[Holding, Sequence[str], int]
"""Trials of a sweep on the same GPUs of a node, and how many."""


def capacity_of(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """How many trials of `wanted` fit on the nodes; a trial does not span two, nor a part of a GPU."""
    return sum(Node(node).fitting(wanted) for node in nodes)


def most_in_places(
    nodes: Mapping[str, Mapping[str, float]], holdings: Sequence[Holding]
) -> Mapping[str, Mapping[Spot, int]]:
    """How many trials of a sweep may run in a place, by sweep, where more do and a larger one shall.

    The largest choose first. What runs stays where it is, as far as it fits; what is granted beyond that goes
    where fewest smaller ones have to give way.
    """
    gpus: dict[str, set[str]] = {name: set() for name in nodes}
    for name, known in (spot for holding in holdings for spot in holding.places if spot[0] in nodes):
        gpus[name].update(known)
    free = {name: Node(nodes[name], sorted(gpus[name])) for name in sorted(nodes)}
    chosen: set[str] = set()
    found: dict[str, dict[Spot, int]] = {holding.sweep_id: {} for holding in holdings}
    falling = sorted(holdings, key=lambda holding: -holding.size)
    for size, group in groupby(falling, key=lambda holding: holding.size):
        smaller = [holding for holding in falling if holding.size < size]
        missing = [(holding, _stay(holding, free, chosen, found[holding.sweep_id])) for holding in group]
        for holding, number in missing:
            chosen |= _choose(holding, number, free, smaller)
    return found


def _stay(holding: Holding, free: Mapping[str, Node], chosen: Set[str], at_most: dict[Spot, int]) -> int:
    """Have as many stay where they run as are granted, and note what does not fit. How many are missing."""
    missing = holding.num_granted
    for (name, gpus), number in sorted(holding.places.items()):
        if name in free:
            fitting = free[name].fitting(holding.wanted, gpus)
            if name in chosen and fitting < number:
                at_most[name, gpus] = fitting
            missing -= free[name].take(holding.wanted, min(number, missing), gpus)
    return missing


def _choose(holding: Holding, number: int, free: Mapping[str, Node], smaller: Sequence[Holding]) -> set[str]:
    """Put so many more trials on nodes, each where it is in the way of fewest; which nodes."""
    there: dict[str, list[_Group]] = {name: [] for name in free}
    for other in smaller:
        for (name, gpus), how_many in sorted(other.places.items()):
            if name in there:
                there[name].append((other, gpus, how_many))
    if not any(there.values()):
        return set()  # it is in nobody's way
    costs = {name: _cheapest(holding.wanted, node, there[name]) for name, node in free.items()}
    chosen = set()
    for _ in range(number):
        best = min(costs, key=lambda name: costs[name][0])
        if not free[best].take(holding.wanted, 1, costs[best][1]):
            break
        chosen.add(best)
        costs[best] = _cheapest(holding.wanted, free[best], there[best])
    return chosen


def _cheapest(
    wanted: Mapping[str, float], node: Node, there: Sequence[_Group]
) -> tuple[tuple[float, int], Sequence[str]]:
    """What one more trial costs on those GPUs of a node where fewest go for it, and which they are."""
    on_one = {**wanted, "GPU": min(wanted["GPU"], 1.0)}

    def rank(gpu: str) -> tuple[tuple[float, int], float]:
        on_it = [group for group in there if gpu in group[1]]
        return _cost(on_one, [gpu], node, on_it), node.gpus[gpu]

    rising = sorted(node.gpus, key=rank) if wanted["GPU"] else []
    gpus = rising[: math.ceil(wanted["GPU"])]
    return _cost(wanted, gpus, node, there), gpus


def _cost(
    wanted: Mapping[str, float], gpus: Sequence[str], node: Node, there: Sequence[_Group]
) -> tuple[float, int]:
    """How many go for one more: beyond those that their sweeps give back in any case, and in all."""
    without, beside = node.copy(), node.copy()
    if not beside.take(wanted, 1, gpus):
        return math.inf, 0
    goes: Counter[str] = Counter()
    spare = {other.sweep_id: max(0, other.num_running - other.num_granted) for other, _, _ in there}
    for other, theirs, number in there:
        fitted = without.take(other.wanted, number, theirs)
        goes[other.sweep_id] += fitted - beside.take(other.wanted, number, theirs)
    moved = sum(max(0, number - spare[sweep_id]) for sweep_id, number in goes.items())
    return moved, goes.total()
