"""What a conductor makes of its share of the cluster, of a quota, and of a driver grown too large."""

from collections.abc import Callable

from conducting import EPOCHS, Sweep, measure, next_of, run, sweep_spec

from care_sweep.run.conductor import Conductor
from care_sweep.run.open_trials import Assignment
from care_sweep.run.sharing import UNSHARED, Share
from care_sweep.spec import Budget, Place, TrialState
from care_sweep.store import Caller, Quota, Scope


def test_a_trial_beyond_its_sweeps_share_waits_after_its_epoch(make_sweep: Callable[..., Sweep]) -> None:
    conductor = make_sweep().conduct()
    first, second = next_of(conductor), next_of(conductor)
    conductor.room.share = Share(num_trials=1)
    assert measure(conductor, first, 1, 0.5)
    assert not measure(conductor, second, 1, 0.5)
    assert (conductor.num_running, conductor.has_room) == (1, False)


def test_a_preempted_trial_goes_on_first_and_loses_nothing(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    assignment = next_of(conductor)
    for epoch in range(1, EPOCHS):
        conductor.room.share = Share(num_trials=0)
        assert measure(conductor, assignment, epoch, 0.5)
        conductor.room.share = UNSHARED
        assignment = next_of(conductor)
        assert (assignment.number, assignment.attempt, assignment.last_epoch) == (0, epoch + 1, epoch)
    run(conductor, assignment, 0.5)
    reasons = [attempt.reason for attempt in sweep.store.attempts(sweep.id, 0)]
    assert reasons == ["preempted"] * (EPOCHS - 1) + [None]
    assert sweep.store.trial(sweep.id, 0).state is TrialState.COMPLETE


def place(conductor: Conductor, trial: Assignment, node_id: str, *gpus: str) -> None:
    told = Place(actor_id="a1", node_id=node_id, log_name=None, gpus=gpus)
    conductor.placed(trial.number, trial.attempt, told)


def test_trials_make_room_on_a_node_and_only_there(make_sweep: Callable[..., Sweep]) -> None:
    """Of four trials on two nodes two shall go: those of the one node, whichever reports first."""
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    trials = {name: next_of(conductor) for name in ("a0", "a1", "b0", "b1")}
    for name, trial in trials.items():
        place(conductor, trial, name[0])
    conductor.room.share = Share(num_trials=2, at_most={("a", ()): 0})
    gave_way = {name: measure(conductor, trial, 1, 0.5) for name, trial in reversed(trials.items())}
    assert gave_way == {"b1": False, "b0": False, "a1": True, "a0": True}
    assert [one.reason for one in sweep.store.attempts(sweep.id, 0)] == ["preempted"]


def test_trials_make_room_on_one_gpu_of_a_node(make_sweep: Callable[..., Sweep]) -> None:
    conductor = make_sweep(early_stopping="none").conduct()
    trials = [(next_of(conductor), gpu) for gpu in ("0", "0", "1", "1")]
    for trial, gpu in trials:
        place(conductor, trial, "a", gpu)
    conductor.room.share = Share(num_trials=2, at_most={("a", ("1",)): 0})
    assert [gpu for trial, gpu in trials if measure(conductor, trial, 1, 0.5)] == ["1", "1"]


def test_none_begins_where_a_larger_one_waits(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    first, second = next_of(conductor), next_of(conductor)
    place(conductor, first, "a")
    place(conductor, second, "b")
    conductor.room.share = Share(num_trials=2, at_most={("a", ()): 0})
    assert not measure(conductor, second, 1, 0.5)
    assert (conductor.most_at_once, conductor.has_room) == (0, False)
    assert measure(conductor, first, 1, 0.5), "though its sweep runs no more than it may"
    assert not conductor.has_room, "Ray has not yet given the node to the one that waits"
    sweep.clock.now += 5
    assert (conductor.most_at_once, conductor.has_room) == (2, True)
    place(conductor, next_of(conductor), "b")
    assert not measure(conductor, second, 2, 0.5)


def test_room_that_a_dying_worker_makes_is_not_taken_at_once(make_sweep: Callable[..., Sweep]) -> None:
    """It dies as soon as the share is known, before anybody has looked."""
    sweep = make_sweep(early_stopping="none")
    conductor = sweep.conduct()
    first = next_of(conductor)
    place(conductor, first, "a")
    conductor.room.share = Share(num_trials=1, at_most={("a", ()): 0})
    conductor.lost(first.number, first.attempt, "its process died")
    conductor.look()
    assert conductor.most_at_once == 0
    sweep.clock.now += 5
    assert conductor.most_at_once == 1


def test_what_a_trial_holds_of_the_cluster_is_counted(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    conductor.room.share = Share(num_trials=4, cost=0.25, least=100.0)
    first = next_of(conductor)
    measure(conductor, first, 1, 0.5)
    assert sweep.store.sweep(sweep.id).share_seconds == 100.25
    measure(conductor, first, 2, 0.5)
    assert sweep.store.sweep(sweep.id).share_seconds == 100.5


def test_a_driver_that_hands_over_lets_its_trials_report_first(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    first = next_of(conductor)
    conductor.hand_over()
    assert conductor.next() is None
    assert not conductor.is_finished
    assert measure(conductor, first, 1, 0.5)
    assert conductor.is_finished
    assert not conductor.is_over
    sweep.lease.release(reason="handed over")
    again = next_of(sweep.conduct())
    assert (again.number, again.attempt, again.last_epoch) == (0, 2, 1)


def test_a_spent_quota_ends_a_sweep_as_a_spent_budget_does(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    _, token = sweep.store.tokens.create(
        "alice", Scope.SUBMIT, expires_in_seconds=None, quota=Quota(max_gpu_hours=1.5 / 3600)
    )
    alice = sweep.store.seen_by(Caller("alice", Scope.SUBMIT, token.id))
    sweep.id = alice.submit(sweep_spec())[0].id
    conductor = sweep.conduct()
    conductor.gpus_per_trial = 1.0
    first, second = next_of(conductor), next_of(conductor)
    assert not measure(conductor, first, 1, 0.5)
    assert not measure(conductor, second, 1, 0.5)
    assert [one.is_quota_spent for one in conductor.demands() or ()] == [True]
    assert measure(conductor, first, 2, 0.5)
    assert conductor.next() is None
    assert conductor.cut_short == "quota spent"
    assert sweep.store.trial(sweep.id, 0).reason == "quota spent"


def test_waiting_for_a_turn_spends_no_budget(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 100.0})
    conductor = sweep.conduct()
    sweep.clock.now += 1000
    conductor.look()
    assert not conductor.is_out_of_budget
    trial = next_of(conductor)
    sweep.clock.now += 60
    assert not measure(conductor, trial, 1, 0.5)
    assert 60 <= conductor.seconds < 61
    sweep.clock.now += 50
    assert measure(conductor, trial, 2, 0.5)
    assert conductor.cut_short == "budget spent"


def test_what_was_cut_short_is_known_to_the_next_driver(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(budget={"max_seconds": 10.0}, num_trials=1)
    conductor = sweep.conduct()
    trial = next_of(conductor)
    sweep.clock.now += 11
    assert measure(conductor, trial, 1, 0.5)
    sweep.lease.release()
    assert sweep.conduct().cut_short == "budget spent"
    more = {"budget": Budget(max_seconds=1000.0), "num_trials": 2}
    sweep.store.control.extend(sweep.id, lambda document: document.model_copy(update=more))
    conductor = sweep.conduct()
    run(conductor, next_of(conductor), 0.5)
    assert (conductor.is_finished, conductor.cut_short) == (True, None), "it went on with more"


def test_the_storages_trouble_is_told_before_a_wait(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()

    def message() -> str | None:
        return sweep.store.sweep(sweep.id).message

    trial = next_of(conductor)
    conductor.interrupted(trial.number, trial.attempt, "no room")
    conductor.explain("waiting for its turn")
    assert (message(), conductor.is_held_up) == ("no room", True)
    conductor.explain(None)
    assert message() == "no room"
    conductor.explain("waiting for its turn")
    sweep.clock.now += 5
    again = next_of(conductor)
    measure(conductor, again, 1, 0.5)
    assert (message(), conductor.is_held_up) == ("waiting for its turn", False)


def test_what_an_earlier_driver_said_is_taken_back(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    sweep.conduct().explain("waiting for its turn")
    sweep.lease.release()
    conductor = sweep.conduct()
    conductor.explain(None)
    assert sweep.store.sweep(sweep.id).message is None


def test_a_trial_that_holds_more_than_its_share_of_a_gpu_costs_more(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    conductor.gpus_per_trial = 0.25
    conductor.room.share = Share(num_trials=4, cost=0.25)
    trial = next_of(conductor)
    conductor.lost(trial.number, trial.attempt, "it wants 9 GiB", reason="out of memory")
    sweep.clock.now += 10
    again = next_of(conductor)
    assert again.gpus == 1.0
    measure(conductor, again, 1, 0.5)
    assert sweep.store.sweep(sweep.id).share_seconds == 1.0
