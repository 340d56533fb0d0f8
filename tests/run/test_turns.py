"""Whose turn is it to be driven, where more sweeps wait than a runner has places?"""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conducting import sweep_spec
from runner_scene import Scene

from care_sweep.run import runner as runner_module
from care_sweep.run.holders import LEASE_SECONDS
from care_sweep.spec import SweepState

PLACE_SECONDS = 300.0
FREE_PLACE_SECONDS = 5.0


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
