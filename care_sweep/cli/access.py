"""Who may ask a service, and who did what? `care-sweep token create | list | revoke`, and `audit`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from care_sweep.cli.options import Command, Json, app, command, print_answer
from care_sweep.settings import Settings

if TYPE_CHECKING:
    from care_sweep.store import AuditRecord, Store, TokenRecord

__all__ = ["audit", "create", "list_tokens", "revoke"]

_tokens = typer.Typer(help="Make, list or revoke the tokens of a service.", no_args_is_help=True)
app.add_typer(_tokens, name="token")

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}


@_tokens.command(cls=Command)
def create(
    name: Annotated[str, typer.Argument(help="Whose it is: tokens of one name see the same sweeps.")],
    scope: Annotated[
        Literal["read", "submit", "admin", "metrics"],
        typer.Option(help="See sweeps; make and steer them too; see and steer everybody's; /metrics alone."),
    ],
    expires_in: Annotated[str, typer.Option(metavar="TIME", help="As 45m, 12h, 30d, or never.")] = "90d",
    max_sweeps: Annotated[int | None, typer.Option(help="That have not ended, at most.", min=0)] = None,
    max_concurrent_trials: Annotated[
        int | None, typer.Option(help="That run at once in all its sweeps, at most.", min=1)
    ] = None,
    max_gpu_hours: Annotated[float | None, typer.Option(help="In all its life, at most.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it, once: the database keeps its hash alone. Without a quota it has no limit."""
    from care_sweep.store import Quota, Scope  # noqa: PLC0415

    quota = Quota(max_sweeps, max_concurrent_trials, max_gpu_hours)
    with _opened() as store:
        text, made = store.tokens.create(
            name, Scope(scope), expires_in_seconds=_seconds(expires_in), quota=quota
        )
    print_answer({"token": text, **asdict(made)}, text, as_json)


@_tokens.command("list", cls=Command)
def list_tokens(as_json: Json = False) -> None:
    """List all tokens, without their secrets."""
    with _opened() as store:
        found = store.tokens.list()
        shown = _tokens_table(found, store.clock())
    print_answer([asdict(one) for one in found], shown, as_json)


@_tokens.command(cls=Command)
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")], as_json: Json = False
) -> None:
    """End a token: within 5 seconds no service answers it any more."""
    with _opened() as store:
        store.tokens.revoke(token_id)
    print_answer({"id": token_id}, f"token {token_id} is revoked", as_json)


@command()
def audit(
    limit: Annotated[int, typer.Option(help="How many at most, the last ones.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """Show who did what, from the database."""
    from care_sweep.store.audit import newest_deeds  # noqa: PLC0415

    with _opened() as store:
        deeds = newest_deeds(store.engine, limit)
    print_answer([asdict(one) for one in deeds], _deeds_table(deeds), as_json)


@contextmanager
def _opened() -> "Iterator[Store]":
    from care_sweep.store import Store, open_database  # noqa: PLC0415

    engine = open_database(Settings.from_environment().database_url)
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def _seconds(given: str) -> float | None:
    if given == "never":
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", given)
    if found is None:
        raise typer.BadParameter(
            "give minutes, hours or days as 45m, 12h or 30d, or never", param_hint="--expires-in"
        )
    return int(found[1]) * _SECONDS[found[2]]


def _tokens_table(found: "Sequence[TokenRecord]", now: float) -> RenderableType:
    table = _table("id", "name", "scope", "created", "expires", "state", "quota")
    for one in found:
        has_expired = one.expires_at is not None and one.expires_at <= now
        state = "revoked" if one.revoked_at is not None else "expired" if has_expired else "good"
        expires = "never" if one.expires_at is None else _moment(one.expires_at)
        times = (_moment(one.created_at), expires)
        table.add_row(one.id, one.owner, one.scope, *times, state, _quota_in_words(one))
    return table if table.row_count else Text("no tokens; `care-sweep token create NAME` makes one")


def _quota_in_words(one: "TokenRecord") -> str:
    quota, limits = one.quota, []
    if quota.max_sweeps is not None:
        limits.append(f"{quota.max_sweeps} sweeps")
    if quota.max_concurrent_trials is not None:
        limits.append(f"{quota.max_concurrent_trials} trials")
    if quota.max_gpu_hours is not None:
        limits.append(f"{one.gpu_seconds / 3600:.4g} of {quota.max_gpu_hours:g} GPU hours")
    return ", ".join(limits) or "none"


def _deeds_table(deeds: "Sequence[AuditRecord]") -> RenderableType:
    table = _table("when", "who", "token", "did", "to", "which is")
    for one in deeds:
        who = (one.owner, one.token_id or "")
        table.add_row(_moment(one.recorded_at), *who, one.action, one.subject, one.outcome)
    return table if table.row_count else Text("nobody has done anything yet")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
