"""What has an encoder learnt? One page of HTML that needs nothing beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from PIL import Image
from torch import Tensor

from care_sweep.learn.charts import curves, histogram
from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.data import Dataset
from care_sweep.learn.evaluate import (
    Retrieval,
    Structure,
    evaluate_fully,
    project,
)
from care_sweep.learn.measures import dimension_spread
from care_sweep.learn.model_card import method_name, model_card
from care_sweep.learn.neighbors import hue_sheet, neighbors_sheet
from care_sweep.spec import Measurement, TrialConfig

__all__ = ["Findings", "examine", "render"]

_NUM_BINS = 80
_MOST_QUERIES = 10  # a row of the sheet each; ImageNet-100 has a hundred classes

_MEANING = {
    "validation_knn_accuracy": "weighted kNN on features",
    "validation_probe_accuracy": "linear probe on frozen features of clean images, the probe's first seed",
    "validation_probe_accuracy_mean": "mean of 3 probe seeds, which move only the order of images",
    "validation_probe_accuracy_spread": "standard deviation over the 3 probe seeds",
    "relative_equivariance": "gamma_f; lower: augmentations act more like orthogonal maps",
    "wahba_error": "W_f, what the best rotation leaves, over all images",
    "wahba_error_rms": "W_f / sqrt(n), 0 to 2",
    "angle_variance": "of the cosine of f(x) and f(a x), over all; the paper finds CARE lower",
    "angle_variance_over_images": "the mean of each augmentation's own variance over the images",
    "alignment": "mean squared distance of f(x) and f(a x); 0 is invariance",
    "neighbor_change": "share of the 5 nearest that change when the query's hue does",
    "hue_following": "share of the query's change of hue that its neighbours' mean hue makes; 1 follows",
    "uniformity": "0 is one point, lower is more even",
    "effective_rank": "RankMe of the projected embeddings; compares runs of one method only",
    "embedding_spread": "mean deviation of a dimension times sqrt(D); 0 is collapse, 1 even",
    "num_validation_images": "n of all of these",
}


@dataclass(frozen=True)
class Findings:
    """All that the page tells, measured on the validation split of `data`.

    Attributes:
        data: with the mean and deviation that the encoder was trained with.
        same_images: whether they are the images it was trained on, by their fingerprint.
        spread: standard deviation of each dimension of the projected embedding.
    """

    data: Dataset
    same_images: bool
    metrics: dict[str, float]
    structure: Structure
    retrieval: Retrieval
    spread: Tensor
    neighbors: Image.Image
    recoloured: Image.Image


def examine(encoder: LoadedEncoder, data: Dataset) -> Findings:
    """Measure an encoder on a dataset, which need not be its own: kNN and probes are then learnt on that one.

    The test split is not read.
    """
    same_images, data = encoder.knows(data), encoder.as_its_own(data)
    model, config = encoder.model, encoder.config
    device = next(encoder.parameters()).device
    with torch.no_grad():
        found = evaluate_fully(model, data, config, device=device)
        return Findings(
            data=data,
            same_images=same_images,
            metrics=found.metrics,
            structure=found.structure,
            retrieval=found.retrieval,
            spread=dimension_spread(project(model, found.features.validation)).cpu(),
            neighbors=neighbors_sheet(encoder, data, num_queries=_MOST_QUERIES, features=found.features),
            recoloured=hue_sheet(data, found.retrieval),
        )


# --- the page -----------------------------------------------------------------------------------------------

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 sans-serif; color: #1a1a1a; max-width: 1000px; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #ddd; vertical-align: top }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.charts {{ display: flex; flex-wrap: wrap; gap: 1em }}
figure {{ margin: 0 }} figcaption {{ max-width: 460px; color: #444 }}
img, svg {{ max-width: 100%; height: auto }}
pre {{ background: #f6f6f6; padding: 1em; overflow-x: auto; white-space: pre-wrap }}
</style></head><body>
<h1>{title}</h1>
<p>{about}</p>
<h2>Measures</h2>
{measures}
<h2>What augmentations do to embeddings</h2>
<div class="charts">{angles}{spread}</div>
<h2>Training</h2>
{training}
<h2>Nearest neighbours</h2>
<p>A validation image of each {queries}, then the train images nearest to it by the cosine of features.
Green frames are of its class, red ones are not.</p>
{neighbors}
<h2>Nearest neighbours when the hue of the query moves</h2>
<p>By projected embeddings. Blue frames are neighbours that the query as it is does not have:
{change:.0%} of the 5 nearest change{following}.</p>
{recoloured}
<h2>Model card</h2>
<details><summary>settings, metrics and classes that the checkpoint holds</summary><pre>{card}</pre></details>
</body></html>
"""


def render(encoder: LoadedEncoder, found: Findings, measurements: Sequence[Measurement] = ()) -> str:
    """The page. `measurements` are what the epochs of training reported; without them there are no curves."""
    config = encoder.config
    following = found.metrics.get("hue_following")
    return _PAGE.format(
        title=escape(
            f"{config.encoder} on {config.dataset}, equivariance weight {config.equivariance_weight:g}"
        ),
        about=_about(encoder, found),
        measures=_measures(encoder, found),
        angles=_angles(found),
        spread=_spread(found.spread),
        training=_training(measurements),
        queries=_queries(found.data),
        neighbors=_picture(found.neighbors, "validation images and their nearest train images"),
        recoloured=_picture(found.recoloured, "neighbours of queries of other hue"),
        change=found.metrics["neighbor_change"],
        following="" if following is None else f", and their mean hue makes {following:.0%} of the move",
        card=escape(model_card(config, encoder.metrics, encoder.class_names)),
    )


def _about(encoder: LoadedEncoder, found: Findings) -> str:
    config, data = encoder.config, found.data
    images = (
        "the validation split of the images it was trained with"
        if found.same_images
        else "the validation split of images it was not trained with; kNN and probes were learnt on "
        "the train split of these"
    )
    return escape(
        f"Trained as {method_name(config)} (base {config.base}, objective {config.objective}) for "
        f"{config.epochs} epochs with {', '.join(_settings(config))} and seed {config.seed}. "
        f"Measured on {len(data.validation.labels)} images of {data.name}: {images}. "
        f"Encoder {encoder.manifest['manifest_sha256'][:12]}, torch {encoder.manifest['versions']['torch']}."
    )


def _queries(data: Dataset) -> str:
    num_classes = len(set(data.validation.labels.tolist()))
    return "class" if num_classes <= _MOST_QUERIES else f"of the first {_MOST_QUERIES} classes"


def _settings(config: TrialConfig) -> list[str]:
    """What the training had of settings, without those that do nothing in it."""
    named = [
        f"augmentation strength {config.augmentation_strength:g}",
        f"batch size {config.batch_size}",
    ]
    if config.objective != "none" and config.base != "barlow_twins":
        named.insert(0, f"temperature {config.temperature:g}")
    if config.equivariance_weight > 0:
        named.append(f"{config.num_splits} splits")
    return named


def _measures(encoder: LoadedEncoder, found: Findings) -> str:
    rows = ["<tr><th>measure</th><th>here</th><th>in the checkpoint</th><th></th></tr>"]
    for name, meaning in _MEANING.items():
        if name in found.metrics:
            stored = encoder.metrics.get(name)
            rows.append(
                f"<tr><td>{name}</td><td class=number>{found.metrics[name]:.4g}</td>"
                f"<td class=number>{'' if stored is None else f'{stored:.4g}'}</td>"
                f"<td>{escape(meaning)}</td></tr>"
            )
    return f"<table>{''.join(rows)}</table>"


def _angles(found: Findings) -> str:
    cosines = found.structure.cosines
    chart = histogram(
        cosines.flatten().tolist(), -1, 1, num_bins=_NUM_BINS, x_label="cosine of f(x) and f(a x)"
    )
    return _figure(
        chart,
        f"{cosines.shape[1]} images, each under the same {cosines.shape[0]} augmentations of strength 1: "
        f"mean {cosines.mean():.3f}, variance {found.metrics['angle_variance']:.4g}.",
    )


def _spread(spread: Tensor) -> str:
    values = spread.sort(descending=True).values.tolist()
    even = len(values) ** -0.5
    chart = curves(
        {
            "dimensions": list(enumerate(values, 1)),
            "even": [(1, even), (len(values), even)],
        },
        x_label="dimension of f(x), by its spread",
        from_zero=True,
    )
    return _figure(chart, "Standard deviation of each dimension over the images; all at 0 is a collapse.")


def _training(measurements: Sequence[Measurement]) -> str:
    if len(measurements) < 2:
        return (
            "<p>No curves: a checkpoint holds the metrics of its last epoch only, and no measurements of the "
            "others were given.</p>"
        )
    names = sorted(set.intersection(*(set(measurement.metrics) for measurement in measurements)))
    charts = []
    for name in names:
        line = [(float(one.epoch), one.metrics[name]) for one in measurements]
        if len({value for _, value in line}) > 1:
            charts.append(_figure(curves({name: line}, x_label="epoch"), name))
    return f'<div class="charts">{"".join(charts)}</div>'


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _picture(image: Image.Image, description: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{content}">'
