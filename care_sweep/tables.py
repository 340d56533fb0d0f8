"""How do answers look in a terminal? Tables for a person; `--json` prints the answers themselves."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from care_sweep.answers import Best, Sweep, SweepSummary, Trial
from care_sweep.terminal import printable

__all__ = [
    "STATE_STYLES",
    "best_view",
    "count_states",
    "measured",
    "metrics_table",
    "parameters",
    "space_view",
    "sweep_view",
    "sweeps_table",
]

STATE_STYLES = {
    "QUEUED": "cyan",
    "WAITING": "cyan",
    "RUNNING": "blue",
    "STOPPING": "yellow",
    "SUCCEEDED": "green",
    "COMPLETE": "green",
    "PRUNED": "magenta",
    "INFEASIBLE": "yellow",
    "FAILED": "red",
    "CANCELLED": "yellow",
}


def sweeps_table(sweeps: Iterable[SweepSummary]) -> RenderableType:
    table = _table("id", "name", "state", "space", "trials", "created", wraps=("name", "space"))
    for sweep in sweeps:
        ended = sum(n for state, n in sweep["trial_counts"].items() if state not in ("WAITING", "RUNNING"))
        trials = f"{ended} of {sweep['num_trials']}"
        name, space = _one_line(sweep["name"]), _one_line(sweep["space"])
        table.add_row(
            sweep["id"], name, _state(sweep["state"]), space, trials, _local(sweep["created_at"], "minutes")
        )
    return table if table.row_count else Text("no sweeps; `care-sweep submit SPACE` makes one")


def sweep_view(sweep: Sweep, trials: Sequence[Trial]) -> RenderableType:
    """One sweep and its trials."""
    facts = _facts(
        ("name", Text(sweep["name"])),
        ("state", _state(sweep["state"], sweep["reason"])),
        ("message", Text(printable(sweep["message"] or ""))),
        ("space", sweep["space"]),
        ("metric", sweep["metric"]),
        ("trials", f"{count_states(sweep['trial_counts']) or 'none yet'}, of {sweep['num_trials']}"),
        ("enqueued", Text("\n").join(parameters(one["parameters"]) for one in sweep["enqueued"])),
        ("created", _local(sweep["created_at"])),
        ("finished", _local(sweep["finished_at"])),
    )
    table = _table("trial", "state", "metric", "epoch", "parameters", wraps=("state", "parameters"))
    for trial in trials:
        value = trial["metrics"].get(sweep["metric"]) if trial["value"] is None else trial["value"]
        table.add_row(
            str(trial["number"]),
            _state(trial["state"], trial["reason"]),
            "" if value is None else f"{value:.4f}",
            str(trial["last_epoch"]),
            _configuration(trial["parameters"], trial["is_baseline"]),
        )
    return Group(facts, table) if trials else facts


def best_view(best: Best) -> RenderableType:
    """The ranking, the baselines, the differences and what they are worth."""
    table = _table("rank", "trial", "metric", "parameters", wraps=("parameters",))
    shown = best["configurations"] + [one for one in best["baselines"] if one not in best["configurations"]]
    for one in shown:
        table.add_row(
            str(one["rank"]),
            str(one["number"]),
            measured(one["value"], one["standard_error"]),
            _configuration(one["values"], one["is_baseline"]),
        )
    lines: list[RenderableType] = [Text(f"metric: {best['metric']}"), table] if shown else []
    for pair in best["comparisons"]:
        difference = measured(pair["difference"], pair["standard_error"], sign="+")
        between = f"trial {pair['best_number']} - baseline {pair['baseline_number']}"
        lines.append(Text(f"{between}: {difference}  ({pair['note']})"))
    importance = best["importance"]
    if importance["importances"] is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance["importances"].items())
        lines.append(Text(f"importance ({importance['method']}): {shares}"))
    elif importance["reason"]:
        lines.append(Text(f"importance ({importance['method']}): {importance['reason']}"))
    lines.append(Text(f"evidence: {best['evidence']}"))
    return Group(*lines)


def space_view(space: Mapping[str, Any]) -> RenderableType:
    """One search space, as the document that a sweep repeats."""
    table = _table("parameter", "type", "values", "default", "when", wraps=("values", "default", "when"))
    for name, parameter in space["parameters"].items():
        values = (
            ", ".join(map(str, parameter["choices"]))
            if parameter["type"] == "categorical"
            else f"{parameter['low']:g} to {parameter['high']:g}{' (log)' if parameter['log'] else ''}"
        )
        default, when = parameter["default"], parameter["when"]
        table.add_row(
            name, parameter["type"], values, "" if default is None else str(default), parameters(when or {})
        )
    return Group(
        Text(f"{space['name']}: {space['description'].strip()}"),
        table,
        Text(f"fixed: {parameters(space['fixed'])}"),
        *(Text(f"baseline: {parameters(baseline)}") for baseline in space["baselines"]),
    )


def metrics_table(metrics: Mapping[str, float]) -> RenderableType:
    table = _table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    return table


def parameters(values: Mapping[str, Any]) -> Text:
    return Text(
        ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else printable(f"{name}={value}")
            for name, value in values.items()
        )
    )


def _configuration(values: Mapping[str, Any], is_baseline: bool) -> Text:
    return Text.assemble("baseline: " if is_baseline else "", parameters(values))


def measured(value: float, standard_error: float, sign: str = "") -> str:
    return f"{value:{sign}.4f} ± {standard_error:.4f}"


def count_states(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATE_STYLES if counts.get(state))


def _table(*columns: str, wraps: Sequence[str] = ()) -> Table:
    """A table in which a narrow terminal takes room from the columns that wrap, and from no other."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in wraps, overflow="fold")
    return table


def _one_line(name: str) -> Text:
    """A name of any length: cut, where its column has no room for all of it."""
    return Text(name, no_wrap=True, overflow="ellipsis")


def _facts(*facts: tuple[str, RenderableType]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        if str(value):
            table.add_row(Text(name, style="bold"), value)
    return table


def _state(state: str, reason: str | None = None) -> Text:
    text = Text(state, style=STATE_STYLES.get(state, ""))
    return text.append(f" ({reason})", style="dim") if reason else text


def _local(moment: str | None, precision: Literal["minutes", "seconds"] = "seconds") -> str:
    if moment is None:
        return ""
    return datetime.fromisoformat(moment).astimezone().replace(tzinfo=None).isoformat(" ", precision)
