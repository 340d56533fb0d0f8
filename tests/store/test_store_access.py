"""Whose are the sweeps, who may ask, and who did what: tokens, owners and the audit log, on each database."""

import hashlib
import re
from collections.abc import Callable, Mapping

import pytest
from situations import PARAMETERS, Clock, claimed, in_the_middle, picture, spec

from care_sweep.errors import Conflict, IdempotencyKeyReused, InvalidDocument, NotFound
from care_sweep.spec import SweepState
from care_sweep.store import Caller, Scope, Store
from care_sweep.store.audit import newest_deeds

ALICE, BOB, ADMIN = (
    Caller("alice", Scope.SUBMIT, "a1"),
    Caller("bob", Scope.SUBMIT, "b1"),
    Caller("root", Scope.ADMIN, "r1"),
)

READS: Mapping[str, Callable[[Store, str], object]] = {
    "sweep": lambda store, sweep: store.sweep(sweep),
    "state": lambda store, sweep: store.state(sweep),
    "trials": lambda store, sweep: store.trials(sweep),
    "trial": lambda store, sweep: store.trial(sweep, 0),
    "attempts": lambda store, sweep: store.attempts(sweep, 0),
    "measurements": lambda store, sweep: store.measurements(sweep),
    "curves": lambda store, sweep: store.curves(sweep, "loss"),
    "events": lambda store, sweep: store.events(sweep),
}

WISHES: Mapping[str, Callable[[Store, str], object]] = {
    "pause": lambda store, sweep: store.control.pause(sweep),
    "resume": lambda store, sweep: store.control.resume(sweep),
    "stop": lambda store, sweep: store.control.stop(sweep),
    "cancel": lambda store, sweep: store.control.cancel(sweep),
    "extend": lambda store, sweep: store.control.extend(sweep, lambda spec: spec),
    "enqueue": lambda store, sweep: store.control.enqueue(sweep, PARAMETERS),
    "stop a trial of": lambda store, sweep: store.control.stop_trial(sweep, 0),
    "delete": lambda store, sweep: store.control.delete(sweep),
}


def _deeds(store: Store) -> list[tuple[str, str | None, str, str, str]]:
    return [(d.owner, d.token_id, d.action, d.subject, d.outcome) for d in newest_deeds(store.engine, 100)]


# --- tokens ---


def test_a_token_is_kept_as_its_hash_alone(store: Store) -> None:
    text, made = store.tokens.create("alice", Scope.SUBMIT, expires_in_seconds=None)
    assert re.fullmatch(r"cs_[A-Za-z0-9_-]{43}", text), "256 bits"
    (row,) = picture(store)["tokens"]
    assert row.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert text not in repr(picture(store))
    assert store.tokens.caller(text) == Caller("alice", Scope.SUBMIT, made.id)


def test_every_token_is_another(store: Store) -> None:
    made = [store.tokens.create("alice", Scope.READ, expires_in_seconds=None) for _ in range(20)]
    assert len({text for text, _ in made}) == len({record.id for _, record in made}) == 20


@pytest.mark.parametrize(
    "change", [str.swapcase, lambda text: text[:-1], lambda text: "", lambda text: "cs_"]
)
def test_another_text_is_nobodys(store: Store, change: Callable[[str], str]) -> None:
    text, _ = store.tokens.create("alice", Scope.ADMIN, expires_in_seconds=None)
    assert store.tokens.caller(change(text)) is None


def test_a_token_ends_at_its_time(store: Store, clock: Clock) -> None:
    text, made = store.tokens.create("alice", Scope.READ, expires_in_seconds=60)
    assert made.expires_at == clock.now + 60
    clock.now += 59.9
    assert store.tokens.caller(text) is not None
    clock.now += 0.1
    assert store.tokens.caller(text) is None


def test_a_revoked_token_is_nobodys_at_once(store: Store, other_store: Store) -> None:
    text, made = store.tokens.create("alice", Scope.READ, expires_in_seconds=None)
    second, _ = store.tokens.create("alice", Scope.READ, expires_in_seconds=None)
    other_store.tokens.revoke(made.id)
    assert store.tokens.caller(text) is None
    assert store.tokens.caller(second) is not None, "the one that takes its place"
    with pytest.raises(Conflict, match="was revoked before"):
        store.tokens.revoke(made.id)
    with pytest.raises(NotFound, match="no token 'absent'"):
        store.tokens.revoke("absent")


def test_tokens_are_listed_without_their_secret(store: Store, clock: Clock) -> None:
    _, first = store.tokens.create("alice", Scope.READ, expires_in_seconds=60)
    clock.now += 1
    _, second = store.tokens.create("bob", Scope.ADMIN, expires_in_seconds=None)
    assert store.tokens.list() == [first, second]
    store.tokens.revoke(first.id)
    assert store.tokens.list()[0].revoked_at == clock.now


@pytest.mark.parametrize("name", ["", "a b", "a\n", "-a", "ü", "a" * 101, "a/b"])
def test_an_unfit_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidDocument, match="must begin with a letter or digit"):
        store.tokens.create(name, Scope.READ, expires_in_seconds=None)
    assert not picture(store)["tokens"]


@pytest.mark.parametrize("wanted", [Scope.READ, Scope.SUBMIT, Scope.ADMIN])
def test_each_scope_includes_those_before_it(wanted: Scope) -> None:
    order = [Scope.READ, Scope.SUBMIT, Scope.ADMIN]
    assert [has for has in order if has.includes(wanted)] == order[order.index(wanted) :]


# --- owners ---


@pytest.mark.parametrize("read", READS)
def test_what_is_another_owners_is_not_there(store: Store, read: str) -> None:
    sweep = in_the_middle(store.seen_by(ALICE)).sweep_id
    for caller in (ALICE, ADMIN, Caller("alice", Scope.READ)):
        assert READS[read](store.seen_by(caller), sweep) == READS[read](store, sweep)
    with pytest.raises(NotFound) as foreign:
        READS[read](store.seen_by(BOB), sweep)
    with pytest.raises(NotFound) as absent:
        READS[read](store.seen_by(BOB), "absent")
    assert str(foreign.value).replace(sweep, "absent") == str(absent.value)


@pytest.mark.parametrize("wish", WISHES)
def test_what_is_another_owners_is_not_moved(store: Store, wish: str) -> None:
    sweep = in_the_middle(store.seen_by(ALICE)).sweep_id
    before = picture(store)
    with pytest.raises(NotFound, match=f"there is no sweep '{sweep}'"):
        WISHES[wish](store.seen_by(BOB), sweep)
    assert picture(store) == before


def test_each_sees_a_list_of_its_own(store: Store) -> None:
    names = {caller.owner: [f"{caller.owner} {n}" for n in range(3)] for caller in (ALICE, BOB)}
    for n in range(3):
        for caller in (ALICE, BOB):
            store.seen_by(caller).submit(spec(names[caller.owner][n]))
    store.submit(spec("of nobody"))
    for caller in (ALICE, BOB):
        seen, token = [], None
        while True:
            page = store.seen_by(caller).sweeps(page_size=2, page_token=token, oldest_first=True)
            seen += [sweep.name for sweep in page.items]
            token = page.next_token
            if token is None:
                break
        assert seen == names[caller.owner]
        assert not store.seen_by(caller).sweeps(states=[SweepState.RUNNING]).items
    assert len(store.seen_by(ADMIN).sweeps().items) == len(store.sweeps().items) == 7
    assert {sweep.owner for sweep in store.sweeps().items} == {"alice", "bob", "local"}


def test_a_key_is_its_owners(store: Store) -> None:
    alices, bobs = store.seen_by(ALICE), store.seen_by(BOB)
    first, _ = alices.submit(spec(), idempotency_key="k", body_sha256="a")
    second, is_new = bobs.submit(spec("other"), idempotency_key="k", body_sha256="b")
    assert is_new
    assert alices.submit(spec(), idempotency_key="k", body_sha256="a") == (first, False)
    assert bobs.submitted("k", "b") == second
    with pytest.raises(IdempotencyKeyReused):
        bobs.submit(spec(), idempotency_key="k", body_sha256="a")
    assert store.submitted("k", "a") is None


# --- the audit log ---


def test_each_deed_is_noted_with_who_did_it(store: Store) -> None:
    seen = store.seen_by(ALICE)
    sweep = seen.submit(spec(), idempotency_key="k", body_sha256="a")[0].id
    seen.submit(spec(), idempotency_key="k", body_sha256="a")
    seen.control.pause(sweep)
    store.seen_by(ADMIN).control.cancel(sweep)
    seen.control.delete(sweep)
    assert _deeds(store) == [
        ("alice", "a1", "submit", sweep, "QUEUED"),
        ("alice", "a1", "pause", sweep, "PAUSED"),
        ("root", "r1", "cancel", sweep, "CANCELLED"),
        ("alice", "a1", "delete", sweep, "DELETED"),
    ]


@pytest.mark.parametrize("wish", WISHES)
def test_each_wish_is_noted_once_and_a_refused_one_not(store: Store, wish: str) -> None:
    seen = store.seen_by(ADMIN)
    sweep = (claimed if wish == "enqueue" else in_the_middle)(store).sweep_id
    if wish in ("resume", "delete"):
        with pytest.raises(Conflict):
            WISHES[wish](seen, sweep)
        assert _deeds(store) == []
        store.control.pause(sweep)
    if wish == "delete":
        store.control.cancel(sweep)
    WISHES[wish](seen, sweep)
    part = "/trials/0" if wish == "stop a trial of" else ""
    assert [deed[:4] for deed in _deeds(store)] == [("root", "r1", wish, sweep + part)]


def test_what_a_runner_does_is_nobodys_deed(store: Store) -> None:
    in_the_middle(store).finish_sweep(SweepState.SUCCEEDED)
    assert _deeds(store) == []


def test_tokens_are_made_and_revoked_by_the_operator(store: Store) -> None:
    _, made = store.tokens.create("alice", Scope.ADMIN, expires_in_seconds=None)
    store.tokens.revoke(made.id)
    assert _deeds(store) == [
        ("operator", None, "create token", made.id, "admin"),
        ("operator", None, "revoke token", made.id, "revoked"),
    ]


def test_the_newest_deeds_come_last(store: Store, clock: Clock) -> None:
    for number in range(5):
        clock.now += 1
        store.seen_by(Caller(f"owner-{number}", Scope.SUBMIT)).submit(spec())
    assert [deed.owner for deed in newest_deeds(store.engine, 2)] == ["owner-3", "owner-4"]
