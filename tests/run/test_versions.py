"""A sweep waits, and says why, while a node has other code than its driver."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
from conducting import Sweep

from care_sweep.run import versions


def test_every_host_that_differs_is_named() -> None:
    assert versions.unfit({"a": "1.0", "b": "1.0"}, "1.0") is None
    assert versions.unfit({}, "1.0") is None
    said = versions.unfit({"a": "1.0", "c": None, "b": "0.9"}, "1.0")
    assert said == (
        "waiting: the driver has care-sweep 1.0, but b has 0.9, c has none; give all nodes the same image"
    )


def test_a_sweep_says_what_it_waits_for_until_it_is_mended(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    own = versions.version("care-sweep")
    messages: list[str | None] = []
    answers: list[Mapping[str, str | None]] = [{"a": own, "b": None}, {"a": own, "b": "0.0.1"}, {"a": own}]
    monkeypatch.setattr(versions, "_versions_elsewhere", lambda _: answers.pop(0))
    monkeypatch.setattr(
        versions.time, "sleep", lambda _: messages.append(sweep.store.sweep(sweep.id).message)
    )
    versions.await_same_version(conductor, SimpleNamespace(staying=list))
    assert [message and message.partition("but ")[2].partition(";")[0] for message in messages] == [
        "b has none",
        "b has 0.0.1",
    ]
    assert sweep.store.sweep(sweep.id).message is None
