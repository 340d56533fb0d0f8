"""A runner on a clock of its own, whose drivers' processes do nothing: what the runner's tests start from."""

import io
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conducting import Clock, sweep_spec

from care_sweep.run.runner import Runner
from care_sweep.settings import Settings
from care_sweep.store import Lease, Store, open_database


class Driver:
    """A driver's process that does nothing until it is told to end."""

    pid, status = 0, None
    is_asked_to_give_way = False

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stdin = io.BytesIO()  # by which it is told its sweep

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.status = -15

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGUSR2
        self.is_asked_to_give_way = True

    def wait(self, _: float | None = None) -> None:
        assert self.status is not None


class Scene:
    """A runner that looks twice a second at one sweep, which another runner holds or it itself."""

    def __init__(self, home: Path, num_places: int = 1, storage_uri: str = "") -> None:
        settings = Settings.from_environment(
            {
                "CARE_SWEEP_HOME": str(home),
                "CARE_SWEEP_MAX_ACTIVE_SWEEPS": str(num_places),
                "CARE_SWEEP_STORAGE_URI": storage_uri,
            }
        )
        self.clock = Clock()
        self.wall = Clock()
        self.store = Store(open_database(settings.database_url), self.wall)
        self.sweep_id = self.store.submit(sweep_spec())[0].id
        self.runner = Runner(settings, self.store, monotonic=self.clock, name="ours")

    def held_by_another(self) -> Lease:
        lease = self.store.claim(self.store.sweep(self.sweep_id), "another")
        assert lease is not None
        return lease

    def drivers(self) -> Sequence[Any]:
        return list(self.runner._drivers.values())

    def renew(self) -> None:
        """The drivers are well."""
        for driver in self.drivers():
            driver.lease.renew()

    @property
    def owner(self) -> str | None:
        return self.store.sweep(self.sweep_id).lease_owner

    def look_for(self, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.runner.step()
            self.runner.leftovers.tend()
            meanwhile()
            self.clock.now += 0.5
