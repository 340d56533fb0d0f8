"""A database that moves to another one, and one that is looked over: between and on all kinds."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from situations import CHECKPOINT, PARAMETERS, claimed, in_the_middle, measurement, picture, spec
from sqlalchemy import text

from care_sweep.errors import Conflict
from care_sweep.spec import SweepState, TrialState
from care_sweep.store import Scope, Store, open_database
from care_sweep.store.database import writing
from care_sweep.store.maintenance import check, copy, table_hashes


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty database of either kind, beside the source."""
    if request.param == "postgresql":
        create: Callable[..., str] = request.getfixturevalue("postgresql")
        url = create("target")
    else:
        url = f"sqlite:///{tmp_path / 'target.db'}"
    engine = open_database(url)
    yield Store(engine)
    engine.dispose()


def _lived_in(store: Store) -> None:
    """Rows in every table."""
    lease = in_the_middle(store)
    lease.record(0, 1, measurement(2, checkpoint=CHECKPOINT), state=TrialState.COMPLETE, value=0.1 + 0.2)
    lease.finish_sweep(SweepState.SUCCEEDED, message="Größe: 1/3 — 你好")
    record, _ = store.submit(spec("second"), idempotency_key="k", body_sha256="a")
    store.control.enqueue(record.id, PARAMETERS)
    store.report_cluster("runner", {"nodes": []})
    store.tokens.create("alice", Scope.READ, expires_in_seconds=None)


def test_a_copy_is_equal_and_lives_on(store: Store, target: Store) -> None:
    _lived_in(store)
    hashes = copy(store.engine, target.engine)
    assert all(one.num_rows for one in hashes.values()), "the source has rows in every table"
    assert table_hashes(store.engine) == table_hashes(target.engine) == hashes
    assert picture(target) == picture(store)
    third, _ = target.submit(spec("third"))
    assert [s.name for s in target.sweeps().items] == ["third", "second", "first-look"]
    target.control.cancel(third.id)
    assert check(target.engine) == []


def test_a_difference_changes_the_hash(store: Store) -> None:
    _lived_in(store)
    before = table_hashes(store.engine)
    with writing(store.engine) as connection:
        connection.execute(text("UPDATE trials SET value = 0.3 WHERE value > 0.3 AND value < 0.31"))
    after = table_hashes(store.engine)
    assert {name for name in before if before[name] != after[name]} == {"trials"}


def test_what_is_in_use_is_not_copied(store: Store, target: Store) -> None:
    lease = claimed(store, owner="machine:7")
    with pytest.raises(Conflict, match=r"machine:7 holds sweeps of the source: end its runner first"):
        copy(store.engine, target.engine)
    lease.release()
    copy(store.engine, target.engine)
    before = picture(target)
    with pytest.raises(Conflict, match="the target holds sweeps"):
        copy(store.engine, target.engine)
    assert picture(target) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            "UPDATE trials SET state = 'RUNNING' WHERE number = 3",
            "trial 3 of sweep .* is open, though",
        ),
        ("DELETE FROM measurements WHERE epoch = 1 AND trial_number = 2", "at epoch 1 with 0 measurements"),
        ("UPDATE trials SET last_epoch = 5 WHERE number = 0", "trial 0 of sweep .* at epoch 5 with 2"),
        (
            "UPDATE attempts SET finished_at = NULL WHERE trial_number = 2",
            "an attempt at trial 2 .* has no",
        ),
    ],
)
def test_damage_is_told_in_words(store: Store, damage: str, words: str) -> None:
    _lived_in(store)
    assert check(store.engine) == []
    with writing(store.engine) as connection:
        connection.execute(text(damage))
    assert any(re.search(words, problem) for problem in check(store.engine))
