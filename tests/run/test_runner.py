"""When is a sweep taken over, or a driver replaced? Never for the fault of a database or a clock."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conducting import sweep_spec
from runner_scene import Scene
from sqlalchemy import event, update

from care_sweep.errors import DatabaseUnavailable, StorageError
from care_sweep.run.holders import LEASE_SECONDS
from care_sweep.run.runner import Runner
from care_sweep.spec import SweepState
from care_sweep.storage import open_storage
from care_sweep.store.schema import sweeps

HANG_SECONDS = 60.0


def _away(*_: Any, **__: Any) -> None:
    raise StorageError("the object store does not answer")


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
