"""When is a sweep taken over, or a driver replaced? Never for the fault of a database or a clock."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conducting import Clock, sweep_spec
from sqlalchemy import event, update

from care_sweep.errors import DatabaseUnavailable, StorageError
from care_sweep.run import runner as runner_module
from care_sweep.run.holders import LEASE_SECONDS
from care_sweep.run.runner import Runner
from care_sweep.settings import Settings
from care_sweep.spec import SweepState
from care_sweep.storage import open_storage
from care_sweep.store import Lease, Store, open_database
from care_sweep.store.schema import sweeps

HANG_SECONDS = 60.0
PLACE_SECONDS = 300.0
FREE_PLACE_SECONDS = 5.0


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


def _away(*_: Any, **__: Any) -> None:
    raise StorageError("the object store does not answer")


@pytest.fixture
def make_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    monkeypatch.setattr(runner_module.subprocess, "Popen", Driver)
    made: list[Scene] = []

    def make(**options: Any) -> Scene:
        made.append(Scene(tmp_path, **options))
        return made[-1]

    yield make
    for scene in made:
        scene.store.engine.dispose()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene()


@pytest.fixture
def no_writes(scene: Scene) -> Iterator[Callable[[bool], None]]:
    """Says whether the database takes writes from now on."""
    is_read_only = False

    def configure(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA query_only={'ON' if is_read_only else 'OFF'}")

    def switch(now: bool) -> None:
        nonlocal is_read_only
        is_read_only = now

    event.listen(scene.store.engine, "checkout", configure)
    yield switch


def test_a_lease_that_stands_still_is_taken_over_after_its_length(scene: Scene) -> None:
    scene.held_by_another()
    scene.look_for(LEASE_SECONDS)
    assert scene.owner == "another"
    scene.look_for(1)
    assert scene.owner == "ours"


def test_a_lease_that_is_renewed_is_not(scene: Scene) -> None:
    lease = scene.held_by_another()
    for _ in range(20):
        scene.look_for(LEASE_SECONDS - 1)
        lease.renew()
    assert scene.owner == "another"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wall_clock_that_is_an_hour_off_takes_nothing_over(scene: Scene, hours: int) -> None:
    lease = scene.held_by_another()

    def jump() -> None:
        scene.wall.now += 3600 * hours

    scene.look_for(LEASE_SECONDS - 2, jump)
    lease.renew()
    scene.look_for(LEASE_SECONDS - 2, jump)
    assert scene.owner == "another"


def test_who_did_not_look_knows_nothing(scene: Scene) -> None:
    """It slept, or its reads hung: so may the holder's renewals have."""
    lease = scene.held_by_another()
    scene.look_for(3)
    scene.clock.now += 30
    scene.look_for(LEASE_SECONDS)
    assert scene.owner == "another"
    lease.renew()
    scene.look_for(LEASE_SECONDS - 1)
    assert scene.owner == "another"


def test_where_nobody_can_write_nobody_has_failed_to(scene: Scene, no_writes: Callable[[bool], None]) -> None:
    lease = scene.held_by_another()
    no_writes(True)
    for _ in range(2 * 40):
        try:
            scene.look_for(0.5)
        except DatabaseUnavailable:
            scene.clock.now += 0.5
    no_writes(False)
    scene.look_for(LEASE_SECONDS)
    assert scene.owner == "another"
    lease.renew()
    scene.look_for(LEASE_SECONDS + 1)
    assert scene.owner == "ours", "now it could have"


def test_a_driver_that_hangs_is_replaced(scene: Scene) -> None:
    scene.look_for(HANG_SECONDS)
    assert scene.store.sweep(scene.sweep_id).fencing_token == 1
    scene.look_for(2)
    assert scene.store.sweep(scene.sweep_id).fencing_token == 2


def test_a_driver_whose_sweep_another_runner_has_taken_is_ended(scene: Scene) -> None:
    """It may hang, and with it hold its place here and its part of the cluster."""
    scene.look_for(1)
    (driver,) = scene.drivers()
    lease = scene.held_by_another()
    scene.look_for(2, lease.renew)
    assert driver.process.status == -signal.SIGTERM
    assert (scene.drivers(), scene.owner) == ([], "another")


def test_a_sweep_waits_until_its_last_driver_has_ended(make_scene: Callable[..., Scene]) -> None:
    """Paused and resumed while that driver still winds down: it is not lost sight of."""
    scene = make_scene(num_places=2)
    scene.look_for(1)
    (old,) = scene.drivers()
    scene.store.control.pause(scene.sweep_id)
    old.lease.release(reason="paused")
    scene.store.control.resume(scene.sweep_id)
    scene.look_for(2)
    assert scene.drivers() == [old]
    old.process.status = 0
    scene.look_for(2)
    (new,) = scene.drivers()
    assert (new.process is old.process, scene.owner) == (False, "ours")


def test_drivers_that_die_in_a_row_end_the_sweep_and_not_in_a_moment(scene: Scene) -> None:
    """What is passing, as a cluster that answers and takes nobody, has passed by then."""
    began = scene.clock.now

    def die() -> None:
        for driver in scene.drivers():
            driver.log.path.write_text("before\nConnectionError: too many clients\0\n")
            driver.process.status = 1

    scene.look_for(14, die)
    assert scene.store.sweep(scene.sweep_id).state is SweepState.RUNNING
    while scene.store.sweep(scene.sweep_id).state is SweepState.RUNNING:
        scene.look_for(0.5, die)
    assert 15 <= scene.clock.now - began <= 20
    sweep = scene.store.sweep(scene.sweep_id)
    assert (sweep.state, sweep.reason) == (SweepState.FAILED, "driver failed")
    assert sweep.message == (
        f"its driver ended 4 times in a row; sweeps/{scene.sweep_id}/driver.log ends with: "
        "ConnectionError: too many clients\ufffd"
    )


def test_runners_do_not_take_from_each_other_what_rests(scene: Scene) -> None:
    other = Runner(scene.runner.settings, scene.store, monotonic=scene.clock, name="another")
    num_started = 0

    def die() -> None:
        nonlocal num_started
        other.step()
        for driver in (*scene.drivers(), *other._drivers.values()):
            num_started += driver.process.status is None
            driver.process.status = 1
            driver.log.path.touch()

    scene.look_for(60, die)
    assert (scene.store.sweep(scene.sweep_id).reason, num_started) == ("driver failed", 4)


def test_what_rests_asks_nobody_to_give_way(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(num_places=2)
    scene.look_for(PLACE_SECONDS, scene.renew)
    (healthy,) = scene.drivers()
    scene.store.submit(sweep_spec())

    def die() -> None:
        scene.renew()
        for driver in scene.drivers():
            if driver is not healthy:
                driver.process.status = 1
                driver.log.path.touch()

    scene.look_for(14, die)
    assert scene.drivers() == [healthy]
    assert not healthy.process.is_asked_to_give_way


def test_a_cancelled_sweep_ends_though_it_rests(scene: Scene) -> None:
    for _ in range(2):
        scene.look_for(1)
        for driver in scene.drivers():
            driver.process.status = 1
    scene.look_for(1)
    assert (scene.drivers(), scene.owner) == ([], "ours")
    scene.store.control.cancel(scene.sweep_id)
    scene.look_for(1)
    assert scene.store.sweep(scene.sweep_id).state is SweepState.CANCELLED


def test_a_sweep_whose_driver_cannot_be_started_says_why_and_holds_up_no_other(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(num_places=2)
    other = scene.store.submit(sweep_spec())[0].id
    place = scene.runner.leftovers.log_of(scene.sweep_id, 1).path.parent
    place.parent.mkdir(parents=True)
    place.write_text("in the way")
    scene.look_for(2, scene.renew)
    assert [driver.lease.sweep_id for driver in scene.drivers()] == [other]
    message = scene.store.sweep(scene.sweep_id).message
    assert message is not None
    assert message.startswith("no driver could be started on ")
    assert message.endswith(": File exists")
    claims = scene.store.sweep(scene.sweep_id).fencing_token
    place.unlink()
    scene.look_for(15, scene.renew)
    assert (scene.owner, scene.store.sweep(scene.sweep_id).fencing_token) == ("ours", claims + 1)


def test_nothing_is_noted_of_sweeps_that_others_have_ended(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(num_places=2)
    lease = scene.held_by_another()
    scene.look_for(3, lease.renew)
    assert scene.runner._holders._observed
    lease.finish_sweep(SweepState.SUCCEEDED)
    scene.look_for(1)
    assert not scene.runner._holders._observed


def test_a_driver_is_not_replaced_for_a_database_that_was_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise DatabaseUnavailable("the database does not answer")

    scene.look_for(10)
    with monkeypatch.context() as patch:
        patch.setattr(scene.store, "hold", away)
        for _ in range(2 * 90):
            with pytest.raises(DatabaseUnavailable):
                scene.runner.step()
            scene.clock.now += 0.5
    scene.look_for(HANG_SECONDS)
    assert scene.store.sweep(scene.sweep_id).fencing_token == 1


def test_a_runner_ends_its_drivers_though_the_database_is_away(
    scene: Scene, no_writes: Callable[[bool], None]
) -> None:
    scene.look_for(1)
    (driver,) = scene.drivers()
    no_writes(True)
    scene.runner.close()
    assert driver.process.poll() is not None


def test_a_new_sweep_does_not_take_the_place_of_one_whose_runner_has_gone(scene: Scene) -> None:
    scene.held_by_another()
    new = scene.store.submit(sweep_spec())[0].id
    scene.look_for(LEASE_SECONDS + 1)
    assert (scene.owner, scene.store.sweep(new).state) == ("ours", SweepState.QUEUED)


def test_a_new_sweep_need_not_wait_for_one_that_another_runner_drives(scene: Scene) -> None:
    lease = scene.held_by_another()
    new = scene.store.submit(sweep_spec())[0].id
    scene.look_for(3, lease.renew)
    assert (scene.owner, scene.store.sweep(new).state) == ("another", SweepState.RUNNING)


def test_a_sweep_gives_its_place_to_one_that_waits_after_its_time(scene: Scene) -> None:
    """And so on by turns, for as many as wait; nobody is asked while nobody does."""
    early = scene.sweep_id
    scene.look_for(PLACE_SECONDS, scene.renew)
    (driver,) = scene.drivers()
    assert not driver.process.is_asked_to_give_way
    late = scene.store.submit(sweep_spec())[0].id
    scene.look_for(FREE_PLACE_SECONDS, scene.renew)
    assert not driver.process.is_asked_to_give_way, "another runner may have a place"
    for sweep_id, next_id in ((early, late), (late, early), (early, late)):
        (driver,) = scene.drivers()
        assert driver.lease.sweep_id == sweep_id
        scene.look_for(PLACE_SECONDS + 1, scene.renew)
        assert driver.process.is_asked_to_give_way
        driver.lease.give_way()
        driver.process.status = 0
        scene.look_for(1)
        assert scene.store.sweep(sweep_id).state is SweepState.QUEUED
        assert scene.store.sweep(next_id).state is SweepState.RUNNING


def test_no_more_are_asked_than_wait(make_scene: Callable[..., Scene]) -> None:
    """Though the order of those that had their time changes while the first one's trials do not report."""
    scene = make_scene(num_places=2)
    scene.store.control.extend(scene.sweep_id, lambda old: old.model_copy(update={"priority": 4.0}))
    scene.look_for(PLACE_SECONDS / 2, scene.renew)
    scene.store.submit(sweep_spec())
    scene.look_for(PLACE_SECONDS, scene.renew)
    scene.store.submit(sweep_spec())
    scene.look_for(4 * PLACE_SECONDS, scene.renew)
    assert [driver.is_asked for driver in scene.drivers()].count(True) == 1


def test_a_sweep_that_lost_its_holder_has_its_turn_too(scene: Scene) -> None:
    scene.look_for(1, scene.renew)
    abandoned = scene.store.submit(sweep_spec())[0]
    lease = scene.store.claim(abandoned, "another")
    assert lease is not None
    lease.release()
    scene.look_for(PLACE_SECONDS + 1, scene.renew)
    (driver,) = scene.drivers()
    assert driver.process.is_asked_to_give_way
    driver.lease.give_way()
    driver.process.status = 0
    scene.look_for(1)
    assert scene.store.sweep(abandoned.id).lease_owner == "ours"


def test_a_driver_that_has_not_come_to_hear_it_survives_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the runner ignores, a process that it starts ignores until it says otherwise."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    try:
        monkeypatch.setattr(runner_module, "await_cluster", lambda _: pytest.fail("it goes no further"))
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        monkeypatch.setenv("CARE_SWEEP_HOME", str(tmp_path))
        with pytest.raises(pytest.fail.Exception):
            runner_module.main()
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            child.send_signal(signal.SIGUSR2)
            child.communicate(b"\n", timeout=30)
        assert child.returncode == 0
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_fresh_driver_begins_no_new_time(scene: Scene) -> None:
    scene.look_for(PLACE_SECONDS / 2, scene.renew)
    (driver,) = scene.drivers()
    driver.lease.release(reason="handed over")
    driver.process.status = 0
    scene.store.submit(sweep_spec())
    scene.look_for(PLACE_SECONDS / 2 + 1, scene.renew)
    (driver,) = scene.drivers()
    assert (driver.lease.sweep_id, driver.lease.token) == (scene.sweep_id, 2)
    assert driver.process.is_asked_to_give_way


def test_who_has_had_most_for_its_priority_gives_way(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(num_places=3)
    for priority in (4.0, 1.0):
        scene.store.submit(sweep_spec(priority=priority))
    scene.look_for(1, scene.renew)
    stopping = scene.sweep_id
    scene.store.control.stop(stopping)
    scene.store.submit(sweep_spec())
    scene.look_for(PLACE_SECONDS + 1, scene.renew)
    asked = [driver.sweep for driver in scene.drivers() if driver.process.is_asked_to_give_way]
    assert [sweep.priority for sweep in asked] == [1.0], "and not who ends anyway"


def test_a_cancelled_sweep_without_a_runner_ends_though_there_is_no_room(scene: Scene) -> None:
    busy = scene.sweep_id
    scene.look_for(1)
    assert scene.owner == "ours"
    scene.sweep_id = scene.store.submit(sweep_spec())[0].id
    scene.held_by_another()
    scene.store.control.cancel(scene.sweep_id)
    scene.look_for(8)
    assert scene.store.sweep(scene.sweep_id).state is SweepState.CANCELLED
    assert scene.store.sweep(busy).lease_owner == "ours"


def test_what_a_worker_writes_after_its_sweep_was_deleted_goes(scene: Scene) -> None:
    storage = open_storage(scene.runner.settings.storage_uri)
    scene.look_for(1)
    scene.store.control.cancel(scene.sweep_id)
    scene.look_for(1)
    scene.store.control.delete(scene.sweep_id)
    storage.put(f"sweeps/{scene.sweep_id}/trials/00000/attempt-1/state-00001.pt", b"late")
    scene.look_for(32)
    assert list(storage.list("sweeps")) == []


def test_a_drivers_log_goes_to_the_object_store_once_it_has_ended(
    bucket: str, make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be away at first."""
    scene = make_scene(storage_uri=f"{bucket}/logs")
    scene.look_for(1)
    (driver,) = scene.drivers()
    driver.log.path.write_text("what it said")
    driver.lease.finish_sweep(SweepState.SUCCEEDED)
    driver.process.status = 0
    with monkeypatch.context() as patch:
        patch.setattr(type(scene.runner.leftovers._storage), "put", _away)
        with pytest.raises(StorageError):
            scene.look_for(1)
    scene.look_for(1)
    storage = open_storage(scene.runner.settings.storage_uri)
    assert b"".join(storage.read(f"sweeps/{scene.sweep_id}/driver-00001.log")) == b"what it said"
    assert not driver.log.path.exists(), "each lease leaves one"


def test_a_thousand_paused_sweeps_hide_none_that_was_abandoned(scene: Scene) -> None:
    for _ in range(1001):
        paused = scene.store.submit(sweep_spec())[0].id
        scene.store.control.pause(paused)
    with scene.store.engine.begin() as connection:  # it was accepted after them
        connection.execute(update(sweeps).where(sweeps.c.id == scene.sweep_id).values(sequence=5000))
    scene.held_by_another()
    scene.look_for(LEASE_SECONDS + 1)
    assert scene.owner == "ours"


def test_a_driver_waits_for_a_sweep_where_one_could_be_driven(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(num_places=2)
    scene.look_for(30, scene.renew)
    (first,) = scene.drivers()
    waiting = scene.runner._starter._waiting
    assert waiting is not None and waiting is not first.process
    late = scene.store.submit(sweep_spec())[0].id
    scene.look_for(30, scene.renew)
    assert {one.lease.sweep_id: one.process for one in scene.drivers()}[late] is waiting
    assert scene.runner._starter._waiting is None, "there is no place for another"
    scene.runner.close()
