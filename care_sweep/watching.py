"""How does a sweep go? Its events as a picture that moves: trials by state, best so far, time left."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from care_sweep.answers import Event, Sweep
from care_sweep.spec import SweepState, TrialConfig, TrialState
from care_sweep.tables import STATE_STYLES, count_states
from care_sweep.terminal import printable

__all__ = ["SweepProgress", "watch"]

_MAX_RUNNING_SHOWN = 12


@dataclass
class _TrialProgress:
    state: str = TrialState.WAITING
    last_epoch: int = 0
    metric: float | None = None


@dataclass
class SweepProgress:
    """What a sweep's events have told so far. Moments are the service's: our clock may be another."""

    name: str
    metric: str
    num_trials: int
    epochs: int
    state: str = SweepState.QUEUED
    reason: str | None = None
    message: str | None = None
    trials: dict[int, _TrialProgress] = field(default_factory=dict)
    best_number: int | None = None
    best_value: float | None = None
    started_at: datetime | None = None
    told_at: datetime | None = None

    @classmethod
    def of(cls, sweep: Sweep) -> "SweepProgress":
        """A sweep before its first event."""
        default = TrialConfig.model_fields["epochs"].default
        epochs = sweep["spec"]["space"]["fixed"].get("epochs", default)
        return cls(sweep["name"], sweep["metric"], sweep["num_trials"], int(epochs))

    def apply(self, event: Event) -> None:
        data = event["data"]
        self.told_at = datetime.fromisoformat(event["recorded_at"])
        if event["kind"] == "sweep":
            self.state, self.reason, self.message = data["state"], data.get("reason"), data.get("message")
            if self.state == SweepState.RUNNING and self.started_at is None:
                self.started_at = self.told_at
            return
        trial = self.trials.setdefault(data["number"], _TrialProgress())
        if event["kind"] == "measurement":
            trial.last_epoch = data["epoch"]
            trial.metric = data["metrics"].get(self.metric, trial.metric)
        elif event["kind"] == "trial":
            trial.state = data["state"]
            value = data.get("value")
            if trial.state == TrialState.COMPLETE and value is not None:
                trial.metric = value
                self._rank(data["number"], value)

    def _rank(self, number: int, value: float) -> None:
        """Of two that are equal the lower number is the best, as in the service's ranking."""
        best = (self.best_value, -self.best_number) if self.best_number is not None else ()
        if (value, -number) > best:
            self.best_number, self.best_value = number, value

    @property
    def counts(self) -> Mapping[str, int]:
        return Counter(trial.state for trial in self.trials.values())

    @property
    def num_ended(self) -> int:
        return sum(TrialState(trial.state).is_terminal for trial in self.trials.values())

    @property
    def share_done(self) -> float:
        """Of all trials, with the epochs of the running ones: an early-stopped trial counts as whole."""
        running = (trial for trial in self.trials.values() if not TrialState(trial.state).is_terminal)
        partly = sum(min(1.0, trial.last_epoch / self.epochs) for trial in running)
        return min(1.0, (self.num_ended + partly) / self.num_trials)

    @property
    def seconds_left(self) -> float | None:
        """If the rest goes as what is done went; None before anything is done."""
        if self.started_at is None or self.told_at is None or not 0 < self.share_done < 1:
            return None
        elapsed = (self.told_at - self.started_at).total_seconds()
        if elapsed <= 0:  # another machine's clock told of the later event
            return None
        return elapsed * (1 - self.share_done) / self.share_done

    def summary(self) -> str:
        """One line: how far it is, the best so far, the time left."""
        parts = [f"{self.num_ended} of {self.num_trials} trials"]
        if self.best_value is not None:
            parts.append(f"best {self.best_value:.4f} (trial {self.best_number})")
        if self.seconds_left is not None and self.state == SweepState.RUNNING:
            parts.append(f"about {_duration(self.seconds_left)} left")
        return ", ".join(parts)


def watch(console: Console, sweep: Sweep, events: Iterable[Event]) -> SweepProgress:
    """Show a sweep until its events, from the first on, end.

    In a terminal this is a live picture, elsewhere one line for each trial that ends.
    """
    progress = SweepProgress.of(sweep)
    if not console.is_terminal:
        for event in events:
            progress.apply(event)
            if _is_news(event):
                console.print(_line(event, progress), soft_wrap=True, highlight=False, markup=False)
        return progress
    with Live(get_renderable=lambda: _picture(sweep, progress), console=console, refresh_per_second=4):
        for event in events:
            progress.apply(event)
    return progress


def _is_news(event: Event) -> bool:
    return event["kind"] == "sweep" or (
        event["kind"] == "trial" and TrialState(event["data"]["state"]).is_terminal
    )


def _line(event: Event, progress: SweepProgress) -> str:
    data = event["data"]
    why = ": ".join(printable(str(data[key])) for key in ("reason", "message") if data.get(key))
    if event["kind"] == "sweep":
        return f"sweep {data['state']}" + (f" ({why})" if why else "")
    trial = progress.trials[data["number"]]
    value = "" if trial.metric is None else f" {trial.metric:.4f} after {trial.last_epoch} epochs"
    return f"trial {data['number']} {data['state']}{value}{f' ({why})' if why else ''}; {progress.summary()}"


def _picture(sweep: Sweep, progress: SweepProgress) -> RenderableType:
    head = Text.assemble(
        (progress.name, "bold"), f"  {sweep['id']}  ", (progress.state, STATE_STYLES.get(progress.state, ""))
    )
    if progress.reason:
        head.append(f" ({progress.reason})")
    if progress.message:
        head.append(f"\n{printable(progress.message)}", "yellow")
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(
        ProgressBar(total=1.0, completed=progress.share_done, width=40),
        f"{progress.share_done:.0%}",
        progress.summary(),
    )
    running = Table.grid(padding=(0, 2, 0, 0))
    shown = [(n, t) for n, t in list(progress.trials.items()) if t.state == TrialState.RUNNING]
    for number, trial in shown[:_MAX_RUNNING_SHOWN]:
        metric = "" if trial.metric is None else f"{progress.metric} {trial.metric:.4f}"
        running.add_row(f"  trial {number}", f"epoch {trial.last_epoch} of {progress.epochs}", metric)
    waiting = Text(
        "waiting to be claimed by a runner"
        if progress.state == SweepState.QUEUED
        else count_states(progress.counts)
    )
    return Group(head, bar, waiting, running)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
