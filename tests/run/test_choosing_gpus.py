"""What does a trial hold of a GPU where the sweep leaves it to us, and what after it wanted more memory?"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from conducting import EPOCHS, Sweep, next_of, sweep_spec
from ray import tune

from benchmarks.few_images import cut_few_images
from care_sweep.client import Client
from care_sweep.documents import parse
from care_sweep.run import worker
from care_sweep.run.packing import choose_gpus, heaviest, most_at_once
from care_sweep.run.tuning import run_trials
from care_sweep.settings import Settings
from care_sweep.spec import CheckpointReference, Measurement, SearchSpace, TrialState
from care_sweep.supervise import running

NODE = {"CPU": 16.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "changes", "expected"),
    [
        ([NODE], {"num_trials": 100}, 8),
        ([NODE], {"num_trials": 3}, 3),
        ([NODE], {"num_trials": 100, "max_concurrent_trials": 2}, 2),
        ([NODE], {"num_trials": 100, "resources": {"cpus_per_trial": 4}}, 4),
        ([{"CPU": 16.0, "GPU": 8.0}], {"num_trials": 100}, 2),
        ([NODE, NODE, {"CPU": 64.0}], {"num_trials": 3}, 2),
        ([{"CPU": 1.0, "GPU": 2.0}], {"num_trials": 100}, 1),
    ],
)
def test_so_many_share_a_gpu_as_there_are_trials_and_cpus_for(
    nodes: list[dict[str, float]], changes: dict[str, Any], expected: int
) -> None:
    assert most_at_once(nodes, sweep_spec(**changes)) == expected


def test_the_heaviest_trial_of_a_space_is_timed() -> None:
    document = {
        "parameters": {
            "equivariance_weight": {"type": "float", "low": 0.0, "high": 10, "default": 0.0},
            "temperature": {"type": "float", "low": 0.05, "high": 1, "default": 0.2},
            "encoder": {"type": "categorical", "choices": ["resnet18", "resnet50", "resnet_tiny"]},
            "batch_size": {"type": "categorical", "choices": [64, 512, 256]},
            "base": {"type": "categorical", "choices": ["moco", "simclr"]},
            "queue_size": {"type": "int", "low": 1024, "high": 65536, "when": {"base": "moco"}},
            "optimizer": {"type": "categorical", "choices": ["sgd", "adam"], "when": {"base": "simclr"}},
        },
        "fixed": {"precision": "float32"},
    }
    config = heaviest(parse(SearchSpace, document), 3)
    assert (config.encoder, config.batch_size, config.equivariance_weight) == ("resnet50", 512, 10)
    assert (config.base, config.queue_size) == ("moco", 65536)
    assert (config.temperature, config.optimizer) == (0.2, "adam"), "a default, one of what is not active"
    assert (config.precision, config.seed) == ("float32", 3)


@pytest.mark.parametrize(
    ("nodes", "changes", "expected"),
    [
        ([NODE], {"resources": {"gpus_per_trial": 0.25}}, 0.25),
        ([NODE], {"resources": {"gpus_per_trial": 2}}, 2.0),
        ([{"CPU": 16.0}], {}, 0.0),
        ([NODE], {"num_trials": 1}, 1.0),
    ],
)
def test_nothing_is_timed_where_nothing_can_come_of_it(
    make_sweep: Callable[..., Sweep],
    settings: Settings,
    nodes: list[dict[str, float]],
    changes: dict[str, Any],
    expected: float,
) -> None:
    sweep = make_sweep(**changes)
    assert choose_gpus(sweep.conduct(), settings, nodes) == expected
    is_ours = "resources" not in changes
    assert sweep.store.sweep(sweep.id).gpus_per_trial == (expected if is_ours else None)
    assert all("gpus_per_trial" not in event.data for event in sweep.store.events(sweep.id))


def test_what_was_chosen_is_told_and_chosen_again_by_the_next_driver(
    make_sweep: Callable[..., Sweep], settings: Settings
) -> None:
    sweep = make_sweep()
    sweep.conduct().note_gpus(0.25, "4 at once on a GPU")
    told = sweep.store.events(sweep.id)[-1]
    assert (told.kind, told.data["gpus_per_trial"], told.data["state"]) == ("sweep", 0.25, "RUNNING")
    assert choose_gpus(sweep.conduct(), settings, [NODE]) == 0.25


@pytest.mark.parametrize(("wanted", "then"), [("auto", 1.0), (0.25, 0.25)])
def test_a_trial_whose_share_was_too_small_gets_a_whole_gpu_if_we_chose_it(
    make_sweep: Callable[..., Sweep], wanted: str | float, then: float
) -> None:
    sweep = make_sweep(early_stopping="none", resources={"gpus_per_trial": wanted})
    conductor = sweep.conduct()
    conductor.gpus_per_trial = 0.25
    first, second = next_of(conductor), next_of(conductor)
    assert (first.gpus, second.gpus) == (0.25, 0.25)
    conductor.lost(first.number, first.attempt, "no memory", reason="out of memory")
    conductor.lost(second.number, second.attempt, "its process died")
    sweep.clock.now += 10
    again, other = next_of(conductor), next_of(conductor)
    assert [(again.number, again.gpus), (other.number, other.gpus)] == [(0, then), (1, 0.25)]
    measurement = Measurement(epoch=1, metrics={"validation_knn_accuracy": 0.5}, seconds=2.0)
    conductor.measured(again.number, again.attempt, measurement)
    assert sweep.store.sweep(sweep.id).gpu_seconds == 2.0 * then

    conductor = sweep.conduct()
    conductor.gpus_per_trial = 0.25
    assert next_of(conductor).gpus == then, "another driver knows it from the store"


def test_without_a_gpu_none_is_asked_for_by_want_of_memory(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    conductor = sweep.conduct()
    first = next_of(conductor)
    conductor.lost(first.number, first.attempt, "no memory", reason="out of memory")
    sweep.clock.now += 10
    assert next_of(conductor).gpus == 0.0


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_shares_a_gpu_as_it_was_timed(tmp_path: Path) -> None:
    """Ray is told of a GPU that is not there: it shares it out all the same, and torch uses the CPU.

    An earlier sweep, which holds the GPU, makes room for the timing. A pause while it is timed ends the
    timing, which is made when the sweep goes on.
    """
    settings = Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path / "home")})
    dataset = cut_few_images(settings.data_roots[0] / "few")
    fixed = {"dataset": dataset, "encoder": "resnet_tiny", "epochs": 1, "batch_size": 32, "num_splits": 4}
    space = {
        "parameters": {"temperature": {"type": "float", "low": 0.1, "high": 1.0}},
        "fixed": {**fixed, "probe_epochs": 5},
    }
    sweep = {"name": "shared", "space": space, "num_trials": 2, "early_stopping": "none"}
    with running(settings, num_cpus=2, num_gpus=1) as instance, Client(instance.url) as client:
        longer = {**space, "fixed": {**space["fixed"], "epochs": 10_000}}
        early = client.submit(sweep | {"space": longer, "resources": {"gpus_per_trial": 1}})["id"]
        _until(lambda: any(trial["last_epoch"] for trial in client.trials(early)))
        sweep_id = client.submit(sweep)["id"]
        _until(lambda: "timing" in str(client.sweep(sweep_id)["message"]))
        client.pause(sweep_id)
        _until(lambda: client.sweep(sweep_id)["message"] is None)
        client.resume(sweep_id)
        ended = client.wait(sweep_id, timeout=250)
        client.cancel(early)
        told = [event["data"] for event in client.events(sweep_id) if event["kind"] == "sweep"]
        seconds = sum(client.measurements(sweep_id, number)[0]["seconds"] for number in range(2))
    assert (ended["state"], ended["trial_counts"]) == ("SUCCEEDED", {"COMPLETE": 2})
    (noted,) = [data for data in told if "gpus_per_trial" in data]
    more = r"(, 2: [\d.]+)?"  # where the machine has memory for two
    assert re.search(rf"images/s of so many trials 1: [\d.]+{more};", noted["message"])
    assert noted["gpus_per_trial"] in (0.5, 1.0)
    assert ended["spent"]["gpu_hours"] * 3600 == pytest.approx(noted["gpus_per_trial"] * seconds)
    assert ended["message"] is None
    log = Path(settings.storage_uri) / "sweeps" / sweep_id / "driver.log"
    assert "the driver failed" not in log.read_text()


@pytest.fixture
def one_gpu() -> Iterator[None]:
    """A cluster of this process's own with a GPU that is not there."""
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_gpu")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trials_go_on_beside_and_after_one_that_wants_a_whole_gpu(
    make_sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    def attempt(order: dict[str, Any]) -> None:
        """Trial 1 needs more than half a GPU; in the place of a worker's."""
        with (tmp_path / "held").open("a") as held:
            held.write(f"{order['number']} {order['attempt']} {order['gpus']} {worker.own_place().gpus}\n")
        if order["number"] == 1 and order["gpus"] < 1:
            tune.report({"loss": json.dumps({"reason": "out of memory", "message": "no memory"})})
            raise MemoryError
        for epoch in range(1, EPOCHS + 1):
            checkpoint = CheckpointReference(name="attempt-1/checkpoint.tar", sha256="0" * 64, size_bytes=1)
            measurement = Measurement(
                epoch=epoch,
                metrics={"validation_knn_accuracy": 0.5},
                seconds=1.0,
                checkpoint=checkpoint if epoch == EPOCHS else None,
            )
            tune.report({"measurement": measurement.model_dump_json()})

    sweep = make_sweep(early_stopping="none")
    sweep.clock = time.monotonic  # type: ignore[assignment]  # its own would stand still
    conductor = sweep.conduct()
    conductor.note_gpus(0.5, "2 at once on a GPU")
    settings = Settings.from_environment({"CARE_SWEEP_HOME": str(tmp_path / "home")})
    run_trials(conductor, settings, attempt)
    assert sweep.store.sweep(sweep.id).trial_counts == {TrialState.COMPLETE: 6}
    held = [line.split(maxsplit=3) for line in (tmp_path / "held").read_text().splitlines()]
    assert {(number, attempt, gpus) for number, attempt, gpus, _ in held} == {
        *((str(number), "1", "0.5") for number in range(6)),
        ("1", "2", "1.0"),
    }
    assert {ids for *_, ids in held} == {"('0',)"}
