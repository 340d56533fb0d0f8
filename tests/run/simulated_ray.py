"""What comes of the division over hours where Ray and Tune do their worst? Seeded, in steps of a second."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demanding import demand

from care_sweep.run.placing import Node
from care_sweep.run.room import _ROOM_SECONDS
from care_sweep.run.sharing import Share, divide
from care_sweep.spec import Spot

_EPOCHS = 10  # of a trial
_STARTING_SECONDS = 5.0  # until a trial says where it runs


@dataclass(eq=False)
class _Trial:
    """One that runs, or waits in Ray for a node."""

    spot: Spot | None = None
    began: float = math.inf
    reports_at: float = math.inf
    epochs_left: int = _EPOCHS


class SimulatedRay:
    """Sweeps on nodes, each with trials that want so much and have epochs of so many seconds.

    Half of all looks of a driver are a second old. Where a trial ends, its worker goes on with another of its
    sweep if that may begin one; else the place is free a second later, and then new trials come before those
    that have waited.

    Attributes:
        used: seconds of all trials of each sweep.
    """

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, float]],
        wanted: Sequence[Mapping[str, float]],
        epochs: Sequence[float],
    ) -> None:
        self.used = [0.0] * len(wanted)
        self._chance = random.Random(0)  # noqa: S311
        self._nodes, self._wanted, self._epochs = nodes, wanted, epochs
        self._free = {
            name: Node(node, [str(gpu) for gpu in range(int(node.get("GPU", 0)))])
            for name, node in nodes.items()
        }
        self._running: list[list[_Trial]] = [[] for _ in wanted]
        self._waiting: list[tuple[int, _Trial]] = []
        self._shares = [Share(0)] * len(wanted)
        self._had = [0.0] * len(wanted)
        self._made_room_at = [-math.inf] * len(wanted)
        self._now = 0

    def run(self, until: int, sweeps: Sequence[int]) -> None:
        """Until this second these sweeps are there."""
        while self._now < until:
            self._look(sweeps)
            left = [(sweep, spot) for sweep in sweeps for spot in self._report(sweep)]
            new = [(sweep, trial) for sweep in sweeps for trial in self._begin(sweep)]
            self._chance.shuffle(new)
            for sweep, (node, gpus) in left:
                self._free[node].cpus += self._wanted[sweep]["CPU"]
                for gpu in gpus:
                    self._free[node].gpus[gpu] += min(1.0, self._wanted[sweep]["GPU"])
            self._waiting = new + self._waiting
            self._place()
            self._now += 1

    def _look(self, sweeps: Sequence[int]) -> None:
        demands = [
            demand(
                str(sweep),
                cpus_per_trial=self._wanted[sweep]["CPU"],
                gpus_per_trial=self._wanted[sweep]["GPU"],
                num_running=len(self._running[sweep]),
                places=self._places(sweep),
                share_seconds=self._had[sweep],
            )
            for sweep in sweeps
        ]
        for key, share in divide(self._nodes, demands).items():
            if self._chance.random() < 0.5 or not self._shares[int(key)].cost:
                self._shares[int(key)] = share

    def _places(self, sweep: int) -> Mapping[Spot, int]:
        known = self._now - _STARTING_SECONDS
        return Counter(trial.spot for trial in self._running[sweep] if trial.spot and trial.began <= known)

    def _may_begin(self, sweep: int) -> bool:
        if self._shares[sweep].num_misplaced(self._places(sweep)):
            self._made_room_at[sweep] = self._now
        has_made_room = self._now >= self._made_room_at[sweep] + _ROOM_SECONDS
        return has_made_room and len(self._running[sweep]) < self._shares[sweep].num_trials

    def _report(self, sweep: int) -> Sequence[Spot]:
        """Where trials have ended."""
        running, left = self._running[sweep], []
        for trial in [trial for trial in running if trial.reports_at <= self._now]:
            assert trial.spot is not None
            self._may_begin(sweep)
            if self._goes_on(sweep, trial):
                continue
            running.remove(trial)
            if self._may_begin(sweep):
                running.append(_Trial())
                self._start(sweep, running[-1], trial.spot)
            else:
                left.append(trial.spot)
        return left

    def _goes_on(self, sweep: int, trial: _Trial) -> bool:
        share, seconds = self._shares[sweep], self._epochs[sweep]
        self.used[sweep] += seconds
        self._had[sweep] = max(self._had[sweep], share.least) + seconds * share.cost
        trial.epochs_left -= 1
        trial.reports_at = self._now + seconds * self._chance.uniform(0.9, 1.1)
        gives_way = share.gives_way(trial.spot, len(self._running[sweep]), self._places(sweep))
        return trial.epochs_left > 0 and not gives_way

    def _begin(self, sweep: int) -> Sequence[_Trial]:
        new = []
        while self._may_begin(sweep):
            new.append(_Trial())
            self._running[sweep].append(new[-1])
        return new

    def _place(self) -> None:
        """Give each a node and GPUs, as Ray does: those that have least left beside it."""
        for sweep, trial in list(self._waiting):
            wanted = self._wanted[sweep]
            fitting = [name for name, node in self._free.items() if node.fitting(wanted)]
            if fitting:
                node = min(fitting, key=lambda name: self._free[name].cpus)
                before = self._free[node].copy().gpus
                self._free[node].take(wanted, 1)
                gpus = tuple(gpu for gpu, free in self._free[node].gpus.items() if free < before[gpu])
                self._start(sweep, trial, (node, gpus))
                self._waiting.remove((sweep, trial))

    def _start(self, sweep: int, trial: _Trial, spot: Spot) -> None:
        trial.spot, trial.began = spot, self._now
        trial.reports_at = self._now + self._epochs[sweep] * self._chance.uniform(0.9, 1.1)
