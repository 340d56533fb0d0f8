"""How much training until a sweep has found a good configuration: ASHA and TPE, or random at full length?

    PYTHONPATH=. python benchmarks/fidelity.py record --data parquet:CIFAR10 --curves curves.jsonl
    PYTHONPATH=. python benchmarks/fidelity.py replay --curves benchmarks/curves/cifar10-12-epochs.jsonl

`record` trains configurations spread over a search space, each at full length, and keeps what every epoch
measured and took: of the processor where it trains on one thread of it, else of the clock. Stop it whenever
you like and give the same command again: what is recorded is not repeated, the run it was at begins anew.

`replay` lets sweeps run in virtual time, in which a trial measures what the nearest recorded configuration
did that the sweep has not had yet. It prints one table: what all trials have spent until one had run at full
length and was within half a point of the best recorded, over seeds.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curves import Recording
    from virtual_sweep import Ended

_SPACE = Path(__file__).parent / "curves" / "fidelity-cifar10.yaml"
_CONTROL = "random at full length"
_BUDGETS = (4, 8, 16)
"""Full-length runs in whose time methods are compared."""


def main() -> None:
    arguments = _arguments()
    if arguments.what == "record":
        _record(arguments)
        return
    report = replay(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(_text(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    recording = commands.add_parser("record", help="train configurations at full length")
    recording.add_argument("--curves", type=Path, required=True, help="the file, begun or gone on with")
    recording.add_argument("--data", default="cifar10", help="as a sweep's `dataset`")
    recording.add_argument("--space", type=Path, default=_SPACE, help="a file with a search space")
    recording.add_argument("--images", type=int, default=1200, help="to train on; 0: all")
    recording.add_argument("--runs", type=int, default=80)
    recording.add_argument("--seed", type=int, default=0, help="of the points and of every training")
    replaying = commands.add_parser("replay", help="let sweeps run over recorded curves")
    replaying.add_argument("--curves", type=Path, required=True)
    replaying.add_argument("--seeds", type=int, default=20, help="so many sweeps of each method")
    replaying.add_argument("--workers", type=int, default=4, help="trials at a time")
    replaying.add_argument("--within", type=float, default=0.5, help="points of the best recorded")
    replaying.add_argument(
        "--early-stopping",
        nargs="+",
        default=["5/4"],
        metavar="GRACE/FACTOR",
        help="grace epochs and reduction factors to try; the service's are 5/4",
    )
    replaying.add_argument("--json", type=Path, help="where the figures are written")
    return parser.parse_args()


def _record(arguments: argparse.Namespace) -> None:
    from recording import record

    kind, colon, _ = arguments.data.partition(":")
    data = f"{kind}:PATH" if colon else kind
    options = f"--space {arguments.space.name} --images {arguments.images} --runs {arguments.runs}"
    record(
        arguments.curves,
        data_name=arguments.data,
        space_file=arguments.space,
        num_images=arguments.images,
        num_runs=arguments.runs,
        seed=arguments.seed,
        command=f"python benchmarks/fidelity.py record --data {data} {options} --seed {arguments.seed}",
    )


# --- replaying ----------------------------------------------------------------------------------------------


def replay(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every method under every seed; methods are compared seed by seed."""
    from curves import read

    recording = read(arguments.curves)
    facts = _facts(recording, arguments.within / 100)
    sweeps = {_CONTROL: _sweeps(recording, arguments, None, is_random=True)}
    sweeps["TPE at full length"] = _sweeps(recording, arguments, None, is_random=False)
    for rungs in arguments.early_stopping:
        sweeps[f"ASHA {rungs} + random"] = _sweeps(recording, arguments, rungs, is_random=True)
        sweeps[f"ASHA {rungs} + TPE"] = _sweeps(recording, arguments, rungs, is_random=False)
    options = {name: getattr(arguments, name) for name in ("seeds", "workers", "within", "early_stopping")}
    methods = {name: _outcome(found, sweeps[_CONTROL], facts) for name, found in sweeps.items()}
    return {"arguments": options, "recording": facts, "methods": methods}


def _outcome(
    sweeps: "Sequence[Sequence[Ended]]", control: "Sequence[Sequence[Ended]]", facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What a method spent; a sweep that never got there is infinitely far.

    The control always gets there: it runs whatever was recorded at full length, the best too.
    """
    from virtual_sweep import seconds_until

    own, theirs = (
        [seconds_until(ended, facts["target"]) or math.inf for ended in found] for found in (sweeps, control)
    )
    assert all(map(math.isfinite, theirs))
    budgets = {str(budget): _quartiles(_below(sweeps, facts, budget)) for budget in _BUDGETS}
    return {
        "num_reached": sum(math.isfinite(seconds) for seconds in own),
        "seconds_by_seed": [seconds if math.isfinite(seconds) else None for seconds in own],
        "seconds": _quartiles(own),
        "control_over_this": _control_over(own, theirs),
        "points_below_best": budgets,
    }


def _control_over(own: Sequence[float], theirs: Sequence[float]) -> list[float | None]:
    """Quartiles of how many times as long the control took; None: the method never got there.

    They are the inverses of the quartiles of own / control, where never is infinite: no ratio that a seed
    has is averaged with it.
    """
    ratios = _quartiles([here / there for here, there in zip(own, theirs, strict=True)])
    return [None if ratio is None else 1 / ratio for ratio in reversed(ratios)]


def _facts(recording: "Recording", within: float) -> dict[str, Any]:
    from virtual_sweep import METRIC

    complete = [curve.metrics[METRIC] for curve in recording.curves if curve.state == "COMPLETE"]
    finals = [values[-1] for values in complete]
    num_images, best = recording.head["num_validation_images"], max(finals)
    return {
        "command": recording.head["command"],
        "device": recording.head["machine"]["device"],
        "seconds": recording.head["seconds"],
        "num_curves": len(recording.curves),
        "num_complete": len(complete),
        "num_validation_images": num_images,
        "best": best,
        "finals": _quartiles(finals),
        "worst": min(finals),
        "standard_error": math.sqrt(best * (1 - best) / num_images),
        "target": best - within,
        "num_in_target": sum(value >= best - within for value in finals),
        "full_length_seconds": sum(sum(curve.seconds) for curve in recording.curves) / len(recording.curves),
        "rank_correlation_with_last": [
            _rank_correlation([values[epoch] for values in complete], finals)
            for epoch in range(len(complete[0]))
        ],
    }


def _sweeps(
    recording: "Recording", arguments: argparse.Namespace, rungs: str | None, *, is_random: bool
) -> "list[list[Ended]]":
    from virtual_sweep import Pool, Search, simulate

    from care_sweep.spec import EarlyStopping, SweepSpec

    space, early_stopping = recording.space, None
    if rungs is not None:
        grace_epochs, reduction_factor = map(int, rungs.split("/"))
        early_stopping = EarlyStopping(grace_epochs=grace_epochs, reduction_factor=reduction_factor)
    epochs = SweepSpec(name=space.name, space=space, num_trials=1).epochs
    found = []
    for seed in range(arguments.seeds):
        search = Search(space, seed, is_random=is_random, early_stopping=early_stopping, epochs=epochs)
        found.append(simulate(Pool(space, recording.curves), search, arguments.workers))
    return found


def _below(sweeps: "Sequence[Sequence[Ended]]", facts: Mapping[str, Any], budget: int) -> list[float]:
    """By how many points each sweep was below the best recorded once it had spent so many full lengths.

    Before its first trial is COMPLETE, a sweep has the worst recorded.
    """
    from virtual_sweep import best_within

    seconds = budget * facts["full_length_seconds"]
    found = (best_within(ended, seconds) for ended in sweeps)
    return [100 * (facts["best"] - (facts["worst"] if best is None else best)) for best in found]


def _quartiles(values: Sequence[float]) -> list[float | None]:
    """As `side_by_side` has them; None: infinite, which JSON cannot say."""
    from side_by_side import quartiles

    return [value if math.isfinite(value) else None for value in quartiles(values)]


def _rank_correlation(ones: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's; equal values share the mean of their ranks."""
    from statistics import correlation

    return correlation(_ranks(ones), _ranks(others))


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + values.count(value) / 2 for value in values]


# --- telling ------------------------------------------------------------------------------------------------


def _text(report: Mapping[str, Any]) -> str:
    from side_by_side import table

    facts = report["recording"]
    head = (
        f"{facts['num_complete']} of {facts['num_curves']} runs complete, {100 * facts['worst']:.1f} to "
        f"{100 * facts['best']:.1f} %, standard error {100 * facts['standard_error']:.2f} points; "
        f"{facts['num_in_target']} within the target of {100 * facts['target']:.1f} %; "
        f"a full-length run {facts['full_length_seconds']:.1f} s {facts['seconds']}, {facts['device']}"
    )
    correlations = ", ".join(f"{value:.2f}" for value in facts["rank_correlation_with_last"])
    rows = [
        {
            "search": name,
            "seeds there": f"{found['num_reached']} of {report['arguments']['seeds']}",
            "seconds until there": _spread(found["seconds"]),
            "control over this": _spread(found["control_over_this"]),
            **{
                f"points below the best after {budget} full lengths": _spread(points)
                for budget, points in found["points_below_best"].items()
            },
        }
        for name, found in report["methods"].items()
    ]
    return "\n\n".join([head, f"rank correlation of each epoch with the last: {correlations}", table(rows)])


def _spread(found: Sequence[float | None]) -> str:
    low, middle, high = ("never" if value is None else f"{value:.3g}" for value in found)
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
