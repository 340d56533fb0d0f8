"""What can a person type? The command `care-sweep`: the client in a terminal, and the programs it starts.

    instance     a service with its runner and Ray: serve, demo
    training     one trial here, and its encoder's use: train, report, test, views, embed, export-weights
    sweeps       what is asked of a service: submit, list, show, watch, best, download, export, logs; spaces
    control      what is wanted of a sweep that is there: pause, resume, stop, cancel, extend, enqueue, delete
    database     what an operator does with the database: db upgrade, check, copy
    access       who may ask a service, and who did what: token create, list, revoke; audit
    arguments    what words and files of the command line mean
    options      what all commands share

Rooms that load torch, Ray or SQL are imported inside the command that needs them: `--help` stays fast.
"""

# A module's commands join the app where it is imported, and `--help` lists them in that order.
# isort: off
from care_sweep.cli.options import app
from care_sweep.cli import instance, training, sweeps, control, database, access
# isort: on

__all__ = ["access", "app", "control", "database", "instance", "main", "sweeps", "training"]


def main() -> None:
    """The entry point; exit status 0 done, 1 failed, 2 usage."""
    app(prog_name="care-sweep")
