"""Where do trials fit on the nodes, and whose must go there so that a larger one fits? Pure functions."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Holding", "Node", "capacity_of", "most_on_nodes"]

_ROUNDING = 1e-9


class Node:
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

    def take(self, wanted: Mapping[str, float], most: int) -> int:
        """Have up to `most` trials less room, the fullest GPUs first. How many fitted."""
        number = max(0, min(self.fitting(wanted), most))
        self.cpus -= number * wanted["CPU"]
        gpus = wanted["GPU"]
        for _ in range(number if gpus else 0):
            least = min(gpus, 1.0) - _ROUNDING
            fit = sorted((free, index) for index, free in enumerate(self.gpus) if free >= least)
            for _, index in fit[: math.ceil(gpus)]:
                self.gpus[index] -= min(gpus, 1.0)
        return number

    def copy(self) -> "Node":
        other = Node({"CPU": self.cpus})
        other.gpus = list(self.gpus)
        return other


@dataclass(frozen=True)
class Holding:
    """The trials of a sweep.

    Attributes:
        wanted: of each resource by one of them.
        size: of one of them, in the same unit for all sweeps.
        places: how many run on which node; of one that has just begun it is not known yet.
    """

    sweep_id: str
    wanted: Mapping[str, float]
    size: float
    num_granted: int
    num_running: int
    places: Mapping[str, int]


def capacity_of(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """How many trials of `wanted` fit on the nodes; a trial does not span two, nor a part of a GPU."""
    return sum(Node(node).fitting(wanted) for node in nodes)


def most_on_nodes(
    nodes: Mapping[str, Mapping[str, float]], holdings: Sequence[Holding]
) -> Mapping[str, Mapping[str, int]]:
    """How many trials of a sweep may run on a node, by sweep and node, where more do and a larger one shall.

    The largest choose first. What runs stays where it is, as far as it fits; what is granted beyond that goes
    where fewest smaller ones have to give way.
    """
    free = {name: Node(nodes[name]) for name in sorted(nodes)}
    chosen: set[str] = set()
    found: dict[str, dict[str, int]] = {holding.sweep_id: {} for holding in holdings}
    falling = sorted(holdings, key=lambda holding: -holding.size)
    for size, group in groupby(falling, key=lambda holding: holding.size):
        smaller = [holding for holding in falling if holding.size < size]
        missing = [(holding, _stay(holding, free, chosen, found[holding.sweep_id])) for holding in group]
        for holding, number in missing:
            chosen |= _choose(holding, number, free, smaller)
    return found


def _stay(holding: Holding, free: Mapping[str, Node], chosen: Set[str], at_most: dict[str, int]) -> int:
    """Have as many stay where they run as are granted, and note what does not fit. How many are missing."""
    missing = holding.num_granted
    for name, number in sorted(holding.places.items()):
        if name in free:
            fitting = free[name].fitting(holding.wanted)
            if name in chosen and fitting < number:
                at_most[name] = fitting
            missing -= free[name].take(holding.wanted, min(number, missing))
    return missing


def _choose(holding: Holding, number: int, free: Mapping[str, Node], smaller: Sequence[Holding]) -> set[str]:
    """Put so many more trials on nodes, each where it is in the way of fewest; which nodes."""
    if not any(other.places for other in smaller):
        return set()  # it is in nobody's way
    costs = {name: _cost(holding, name, node, smaller) for name, node in free.items()}
    chosen = set()
    for _ in range(number):
        best = min(costs, key=lambda name: costs[name])
        if not free[best].take(holding.wanted, 1):
            break
        chosen.add(best)
        costs[best] = _cost(holding, best, free[best], smaller)
    return chosen


def _cost(holding: Holding, name: str, node: Node, smaller: Sequence[Holding]) -> tuple[float, int]:
    """How many go for one more: beyond those that their sweeps give back in any case, and in all."""
    without, beside = node.copy(), node.copy()
    if not beside.take(holding.wanted, 1):
        return math.inf, 0
    moved = gone = 0
    for other in smaller:
        number = other.places.get(name, 0)
        goes = without.take(other.wanted, number) - beside.take(other.wanted, number)
        moved += max(0, goes - max(0, other.num_running - other.num_granted))
        gone += goes
    return moved, gone
