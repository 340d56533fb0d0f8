"""What comes of the division over hours where Ray and Tune do their worst? Seeded, in steps of a second."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demanding import demand

from care_sweep.run.conductor import _ROOM_SECONDS
from care_sweep.run.placing import Node
from care_sweep.run.sharing import Share, divide

_EPOCHS = 10  # of a trial
_STARTING_SECONDS = 5.0  # until a trial says where it runs


@dataclass(eq=False)
class _Trial:
    """One that runs, or waits in Ray for a node."""

    node: str | None = None
    began: float = math.inf
    reports_at: float = math.inf
    epochs_left: int = _EPOCHS


class SimulatedRay:
    """Sweeps on nodes, each with trials of so many CPUs and epochs of so many seconds.

    Half of all looks of a driver are a second old. Where a trial ends, its worker goes on with another of its
    sweep if that may begin one; else the place is free a second later, and then new trials come before those
    that have waited.

    Attributes:
        used: CPU seconds of each sweep.
    """

    def __init__(
        self, nodes: Mapping[str, Mapping[str, float]], sizes: Sequence[int], epochs: Sequence[float]
    ) -> None:
        self.used = [0.0] * len(sizes)
        self._chance = random.Random(0)  # noqa: S311
        self._nodes, self._sizes, self._epochs = nodes, sizes, epochs
        self._free = {name: Node(node) for name, node in nodes.items()}
        self._running: list[list[_Trial]] = [[] for _ in sizes]
        self._waiting: list[tuple[int, _Trial]] = []
        self._shares = [Share(0)] * len(sizes)
        self._had = [0.0] * len(sizes)
        self._made_room_at = [-math.inf] * len(sizes)
        self._now = 0

    def run(self, until: int, sweeps: Sequence[int]) -> None:
        """Until this second these sweeps are there."""
        while self._now < until:
            self._look(sweeps)
            left = [(sweep, node) for sweep in sweeps for node in self._report(sweep)]
            new = [(sweep, trial) for sweep in sweeps for trial in self._begin(sweep)]
            self._chance.shuffle(new)
            for sweep, node in left:
                self._free[node].cpus += self._sizes[sweep]
            self._waiting = new + self._waiting
            self._place()
            self._now += 1

    def _look(self, sweeps: Sequence[int]) -> None:
        demands = [
            demand(
                str(sweep),
                cpus_per_trial=self._sizes[sweep],
                num_running=len(self._running[sweep]),
                places=self._places(sweep),
                share_seconds=self._had[sweep],
            )
            for sweep in sweeps
        ]
        for key, share in divide(self._nodes, demands).items():
            if self._chance.random() < 0.5 or not self._shares[int(key)].cost:
                self._shares[int(key)] = share

    def _places(self, sweep: int) -> Mapping[str, int]:
        known = self._now - _STARTING_SECONDS
        return Counter(trial.node for trial in self._running[sweep] if trial.node and trial.began <= known)

    def _may_begin(self, sweep: int) -> bool:
        if self._shares[sweep].num_misplaced(self._places(sweep)):
            self._made_room_at[sweep] = self._now
        has_made_room = self._now >= self._made_room_at[sweep] + _ROOM_SECONDS
        return has_made_room and len(self._running[sweep]) < self._shares[sweep].num_trials

    def _report(self, sweep: int) -> Sequence[str]:
        """The nodes on which trials have ended."""
        running, left = self._running[sweep], []
        for trial in [trial for trial in running if trial.reports_at <= self._now]:
            assert trial.node is not None
            self._may_begin(sweep)
            if self._goes_on(sweep, trial):
                continue
            running.remove(trial)
            if self._may_begin(sweep):
                running.append(_Trial())
                self._start(sweep, running[-1], trial.node)
            else:
                left.append(trial.node)
        return left

    def _goes_on(self, sweep: int, trial: _Trial) -> bool:
        share, seconds = self._shares[sweep], self._epochs[sweep]
        self.used[sweep] += self._sizes[sweep] * seconds
        self._had[sweep] = max(self._had[sweep], share.least) + seconds * share.cost
        trial.epochs_left -= 1
        trial.reports_at = self._now + seconds * self._chance.uniform(0.9, 1.1)
        gives_way = share.gives_way(trial.node, len(self._running[sweep]), self._places(sweep))
        return trial.epochs_left > 0 and not gives_way

    def _begin(self, sweep: int) -> Sequence[_Trial]:
        new = []
        while self._may_begin(sweep):
            new.append(_Trial())
            self._running[sweep].append(new[-1])
        return new

    def _place(self) -> None:
        """Give each a node, as Ray does: that which has least left beside it."""
        for sweep, trial in list(self._waiting):
            wanted = {"CPU": float(self._sizes[sweep]), "GPU": 0.0}
            fitting = [name for name, node in self._free.items() if node.fitting(wanted)]
            if fitting:
                node = min(fitting, key=lambda name: self._free[name].cpus)
                self._free[node].take(wanted, 1)
                self._start(sweep, trial, node)
                self._waiting.remove((sweep, trial))

    def _start(self, sweep: int, trial: _Trial, node: str) -> None:
        trial.node, trial.began = node, self._now
        trial.reports_at = self._now + self._epochs[sweep] * self._chance.uniform(0.9, 1.1)
