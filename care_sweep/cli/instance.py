"""How is an instance had? Here: service, runner and Ray started, alone or for one sweep from end to end."""

from pathlib import Path
from typing import Annotated

import typer

from care_sweep.cli.options import Json, command
from care_sweep.settings import Settings

__all__ = ["demo", "serve"]


@command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the checkpoint and the picture go.")] = Path(
        "care-demo"
    ),
    as_json: Json = False,
) -> None:
    """A whole sweep over real images in a few minutes, from nothing to a checkpoint."""
    from care_sweep.demo import demo as run  # noqa: PLC0415

    raise typer.Exit(run(output, as_json=as_json))


@command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8484,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs for Ray (default: all).", min=1)] = None,
    num_gpus: Annotated[int | None, typer.Option(help="GPUs for Ray (default: all).", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Start the service, a runner and a local Ray with its dashboard, until Ctrl-C."""
    from care_sweep.supervise import serve as run  # noqa: PLC0415

    settings = Settings.from_environment()
    raise typer.Exit(
        run(settings, host=host, port=port, num_cpus=num_cpus, num_gpus=num_gpus, as_json=as_json)
    )
