"""How do a histogram and a curve look on a page? SVG as text, without a library."""

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["curves", "histogram"]

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40
_COLOURS = ("#1565c0", "#c62828", "#2e7d32", "#6a1b9a")
_NUM_TICKS = 5


class _Plot:
    """Axes from data to pixels, and the marks put between them."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        x_names: Mapping[float, str] | None = None,
    ) -> None:
        self.x, self.y = _apart(*x), _apart(*y)
        self.marks: list[str] = []
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for value, name in (x_names or {value: f"{value:g}" for value in _ticks(*self.x)}).items():
            place = self.right_of(value)
            self.marks.append(
                f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
            )
            self.text(place, bottom + 16, name, "middle")
        for value in _ticks(*self.y):
            place = self.above(value)
            self.marks.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>'
            )
            self.text(_LEFT - 6, place + 4, f"{value:g}", "end")
        self.text((_LEFT + right) / 2, _HEIGHT - 6, x_label, "middle")
        self.label = y_label

    def right_of(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def above(self, value: float) -> float:
        low, high = self.y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def text(self, x: float, y: float, words: str, anchor: str) -> None:
        self.marks.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def svg(self) -> str:
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
            f'aria-label="{escape(self.label)}" xmlns="http://www.w3.org/2000/svg">'
            "<style>text{font:12px sans-serif;fill:#333}.grid{stroke:#ddd}</style>"
            + "".join(self.marks)
            + "</svg>"
        )


def histogram(values: Sequence[float], low: float, high: float, *, num_bins: int, x_label: str) -> str:
    """Shares of the values in equal bins from low to high, both included; what lies outside is not drawn."""
    counts = [0] * num_bins
    for value in values:
        if low <= value <= high:
            counts[min(int((value - low) / (high - low) * num_bins), num_bins - 1)] += 1
    shares = [count / max(len(values), 1) for count in counts]
    plot = _Plot((low, high), (0, max(shares, default=0) or 1), x_label, f"histogram of {x_label}")
    step = (high - low) / num_bins
    for number, share in enumerate(shares):
        if share:
            left, right = plot.right_of(low + number * step), plot.right_of(low + (number + 1) * step)
            top = plot.above(share)
            plot.marks.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{plot.above(0) - top:.1f}" fill="{_COLOURS[0]}"/>'
            )
    return plot.svg()


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    from_zero: bool = False,
    x_names: Mapping[float, str] | None = None,
) -> str:
    """One line through the points of each name, with its legend; a single point is a dot.

    Ticks of the x axis are round numbers, or the places and names of `x_names`.
    """
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low = min([0.0, *ys]) if from_zero else min(ys)
    legend = 16 * len(series) + 6 if len(series) > 1 else 0  # pixels that no line reaches
    high = max(ys) + (max(ys) - low) * legend / (_HEIGHT - _TOP - _BOTTOM - legend)
    plot = _Plot((min(xs), max(xs)), (low, high), x_label, " and ".join(series), x_names)
    for number, (name, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(plot.right_of(x), plot.above(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        plot.marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(places) == 1:
            x, y = places[0]
            plot.marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        if len(series) > 1:
            top = _TOP + 14 + 16 * number
            plot.marks.append(
                f'<rect x="{_WIDTH - 150}" y="{top - 8}" width="14" height="3" fill="{colour}"/>'
            )
            plot.text(_WIDTH - 130, top - 2, name, "start")
    return plot.svg()


def _apart(low: float, high: float) -> tuple[float, float]:
    """The range, widened where it is a single value."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers in the range."""
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]
