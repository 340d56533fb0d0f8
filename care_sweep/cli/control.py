"""What can a person want of a sweep that is there, or of one of its trials?"""

from typing import Annotated, Any

import typer

from care_sweep.answers import Sweep
from care_sweep.cli.arguments import assigned, limits
from care_sweep.cli.options import Json, SweepId, Url, client_at, command, print_answer

__all__ = ["cancel", "delete", "enqueue", "extend", "pause", "resume", "stop"]

_Trial = Annotated[int | None, typer.Option(help="Only this trial of it.", min=0)]
_LIMIT = "NUMBER|none"


@command()
def pause(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Let a sweep stand still: running trials stop after their epoch and hold nothing."""
    with client_at(url) as client:
        _tell(client.pause(sweep_id), as_json)


@command()
def resume(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Take a paused sweep up again where it stood."""
    with client_at(url) as client:
        _tell(client.resume(sweep_id), as_json)


@command()
def stop(sweep_id: SweepId, trial: _Trial = None, url: Url = None, as_json: Json = False) -> None:
    """Begin no new trial, let those that have begun end; with --trial cancel that one."""
    with client_at(url) as client:
        _tell(client.stop(sweep_id) if trial is None else client.stop_trial(sweep_id, trial), as_json)


@command()
def cancel(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """End a sweep now; its running trials are cancelled."""
    with client_at(url) as client:
        _tell(client.cancel(sweep_id), as_json)


@command()
def extend(
    sweep_id: SweepId,
    num_trials: Annotated[int | None, typer.Option(help="Baselines and all that ran included.")] = None,
    max_concurrent_trials: Annotated[str | None, typer.Option(metavar=_LIMIT, help="At once.")] = None,
    max_seconds: Annotated[
        str | None, typer.Option(metavar=_LIMIT, help="Of being driven, since its start.")
    ] = None,
    max_gpu_hours: Annotated[
        str | None, typer.Option(metavar=_LIMIT, help="Of stored epochs, since its start.")
    ] = None,
    priority: Annotated[float | None, typer.Option(help="Against sweeps that run beside it.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Let a sweep run or spend more or less; one that succeeded or failed goes on with all it has learnt.

    `none` takes a limit away.
    """
    given = {"num_trials": num_trials, "priority": priority}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    changes |= limits({"max_concurrent_trials": max_concurrent_trials})
    budget = limits({"max_seconds": max_seconds, "max_gpu_hours": max_gpu_hours})
    with client_at(url) as client:
        revision = None
        if budget:  # it is changed as a whole: the limit that is not named stays
            sweep = client.sweep(sweep_id)
            budget = {**(sweep["spec"]["budget"] or {}), **budget}
            changes["budget"] = budget if any(value is not None for value in budget.values()) else None
            revision = sweep["revision"]
        _tell(client.change(sweep_id, changes, revision=revision), as_json)


@command()
def enqueue(
    sweep_id: SweepId,
    values: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="Parameters; others are at their defaults."),
    ],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Have a configuration tried before what the search suggests."""
    with client_at(url) as client:
        sweep = client.enqueue(sweep_id, assigned(values, given_as="KEY=VALUE"))
    print_answer(sweep, f"sweep {sweep['id']} will try {' '.join(values)}", as_json)


@command()
def delete(sweep_id: SweepId, url: Url = None, as_json: Json = False) -> None:
    """Delete an ended sweep with its trials, checkpoints and logs."""
    with client_at(url) as client:
        client.delete(sweep_id)
    print_answer({"id": sweep_id}, f"sweep {sweep_id} is deleted", as_json)


def _tell(sweep: Sweep, as_json: bool) -> None:
    print_answer(sweep, f"sweep {sweep['id']} is {sweep['state']}", as_json)
