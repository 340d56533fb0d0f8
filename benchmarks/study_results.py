"""What did the runs of `study.py` find? A Markdown table of rows over seeds, and curves over the weight."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from care_sweep.learn.charts import curves

RESULT_NAME = "result.json"

_Result = Mapping[str, Any]
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "validation_knn_accuracy": ("kNN %", lambda value: f"{100 * value:.1f}"),
    "validation_probe_accuracy_mean": ("probe %", lambda value: f"{100 * value:.1f}"),
    "relative_equivariance": ("gamma_f", lambda value: f"{value:.3f}"),
    "wahba_error_rms": ("W_f / sqrt(n)", lambda value: f"{value:.3f}"),
    "unexplained": ("unexplained %", lambda value: f"{100 * value:.1f}"),
    "angle_variance": ("angle variance", lambda value: f"{value:.4f}"),
    "angle_variance_over_images": ("of one augmentation", lambda value: f"{value:.4f}"),
    "alignment": ("alignment", lambda value: f"{value:.2f}"),
    "neighbor_change": ("neighbours changed %", lambda value: f"{100 * value:.1f}"),
    "hue_following": ("hue followed %", lambda value: f"{100 * value:.1f}"),
    "embedding_spread": ("spread", lambda value: f"{value:.2f}"),
    "effective_rank": ("rank", lambda value: f"{value:.0f}"),
}
_DRAWN = {
    "validation_knn_accuracy": "kNN accuracy",
    "relative_equivariance": "gamma_f",
    "unexplained": "share that the best rotation leaves",
    "angle_variance_over_images": "angle variance of one augmentation",
}
_TERMS = {"infonce": "InfoNCE", "uniformity": "L_unif", "none": ""}


def read(directory: Path) -> dict[str, Any] | None:
    """The result in a run's directory; None where the run has not ended."""
    path = directory / RESULT_NAME
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    metrics = result["metrics"]
    if metrics.get("alignment"):  # of what augmentations move, the share that the best rotation leaves
        metrics["unexplained"] = metrics["wahba_error_rms"] ** 2 / metrics["alignment"]
    return result


def ended(directory: Path) -> list[dict[str, Any]]:
    """The results of all runs below a directory."""
    return [result for path in sorted(directory.iterdir()) if (result := read(path)) is not None]


def common(result: _Result) -> dict[str, Any]:
    """What runs of one table have in common: all of the configuration but seed and loss, and the images.

    A result that does not tell its images is like no run that does.
    """
    varied = dict.fromkeys(("seed", "objective", "equivariance_weight"))
    return {"config": {**result["config"], **varied}, "data": result.get("data")}


def measurements(directory: Path) -> list[dict[str, Any]]:
    """What the epochs of a run reported, up to the last whole line."""
    log = directory / "measurements.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def table(directory: Path) -> str:
    """A Markdown row for each loss and outcome: mean and standard deviation over its seeds; where they ran.

    Raises:
        SystemExit: the directory holds runs that differ in more than loss and seed.
    """
    rows = _rows(directory)
    heads = ["loss", "seeds", *(head for head, _ in _COLUMNS.values()), "outcome"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for (label, _), results in rows.items():
        outcomes = sorted({_outcome(result) for result in results})
        cells = [_cell([r["metrics"] for r in results], metric) for metric in _COLUMNS]
        lines.append(_line([label, str(len(results)), *cells, ", ".join(outcomes)]))
    ran = {
        f"{r['num_train_images']} train images, {r['config']['epochs']} epochs, {r['config']['encoder']}, "
        f"commit {where['commit']}, {where['device']} with {where['num_threads']} thread(s), "
        f"torch {where['torch']}, Python {where['python']}"
        for results in rows.values()
        for r in results
        for where in [r["machine"]]
    }
    minutes = sum(result["seconds"] for results in rows.values() for result in results) / 60
    num_images = {r["metrics"].get("num_validation_images") for results in rows.values() for r in results}
    images = ", ".join(f"{n:.0f}" for n in sorted(n for n in num_images if n))
    return "\n".join(
        [*lines, "", *sorted(ran), f"n = {images} images measured; {minutes:.0f} minutes of runs"]
    )


def draw(directory: Path, path: Path) -> None:
    """Curves of four measures over the equivariance weight, a line for each seed, two by two."""
    found: dict[int, dict[float, Any]] = defaultdict(dict)
    for results in _rows(directory).values():
        for result in results:
            if result["outcome"] == "COMPLETE" and result["config"]["objective"] == "infonce":
                config = result["config"]
                found[config["seed"]][config["equivariance_weight"]] = result["metrics"]
    weights = sorted({weight for by_weight in found.values() for weight in by_weight})
    if not weights:
        return
    labels = {float(place): f"{weight:g}" for place, weight in enumerate(weights)}
    charts = []
    for metric, words in _DRAWN.items():
        series = {
            f"seed {seed}": [
                (float(weights.index(weight)), by_weight[weight][metric]) for weight in sorted(by_weight)
            ]
            for seed, by_weight in sorted(found.items())
        }
        label = f"{words} by equivariance weight"
        charts.append(curves(series, x_label=label, x_names=labels))
    path.write_text(_beside(charts))


def _beside(charts: list[str]) -> str:
    """One SVG of two columns."""
    size = 'width="920" height="' + str(240 * -(-len(charts) // 2)) + '"'
    placed = [
        chart.replace("<svg ", f'<svg x="{460 * (place % 2)}" y="{240 * (place // 2)}" ', 1)
        for place, chart in enumerate(charts)
    ]
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>' + "".join(placed) + "</svg>\n"


def _rows(directory: Path) -> dict[tuple[str, str], list[_Result]]:
    """Results by row, a loss and what became of it: the untrained encoder, then by loss and weight."""
    found = ended(directory)
    if any(common(result) != common(found[0]) for result in found):
        raise SystemExit(f"{directory} holds runs that differ in more than loss and seed: no table of them")
    found.sort(key=lambda r: (r["outcome"] != "UNTRAINED", _label(r) != "InfoNCE", *_place(r)))
    rows: dict[tuple[str, str], list[_Result]] = defaultdict(list)
    for result in found:
        rows[_label(result), result["outcome"]].append(result)
    return rows


def _place(result: _Result) -> tuple[str, float, int]:
    config = result["config"]
    return config["objective"], config["equivariance_weight"], config["seed"]


def _label(result: _Result) -> str:
    if result["outcome"] == "UNTRAINED":
        return "untrained"
    config = result["config"]
    weight = config["equivariance_weight"]
    terms = [_TERMS[config["objective"]], f"{weight:g} L_equi" if weight else ""]
    return " + ".join(term for term in terms if term)


def _outcome(result: _Result) -> str:
    return result["outcome"] + (
        f" after {result['num_epochs'] + 1} epochs" if "(" in result["outcome"] else ""
    )


def _cell(metrics: list[Mapping[str, float]], name: str) -> str:
    values = [one[name] for one in metrics if name in one]
    form = _COLUMNS[name][1]
    if not values:
        return "-"
    spread = f" ± {form(statistics.stdev(values))}" if len(values) > 1 else ""
    return form(statistics.fmean(values)) + spread


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
