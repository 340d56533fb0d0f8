"""The page about an encoder: whole, self-contained, and with nothing on it that was not measured."""

import base64
import copy
import dataclasses
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from care_sweep.learn import report
from care_sweep.learn.charts import curves, histogram
from care_sweep.learn.checkpoint import LoadedEncoder, load
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.evaluate import evaluate_encoder
from care_sweep.learn.report import Findings, examine, render
from care_sweep.spec import Measurement, TrialConfig


@pytest.fixture(scope="module")
def encoder(checkpoint_file: Path) -> LoadedEncoder:
    return load(checkpoint_file)


@pytest.fixture(scope="module")
def found(encoder: LoadedEncoder, tiny: Dataset) -> Findings:
    return examine(encoder, tiny)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def test_measures_are_those_of_evaluation(encoder: LoadedEncoder, found: Findings, tiny: Dataset) -> None:
    expected = evaluate_encoder(encoder.model, tiny, encoder.config, device=torch.device("cpu"))
    assert found.metrics == expected
    assert found.same_images


def test_the_page_is_whole_and_needs_nothing_beside_it(encoder: LoadedEncoder, found: Findings) -> None:
    page = render(encoder, found)
    tags = _tags(page)
    sources = [attributes["src"] or "" for _, attributes in tags if "src" in attributes]
    assert len(sources) == 2
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.width > 300
    assert not [a for _, a in tags if "href" in a]
    assert not [tag for tag, _ in tags if tag in ("script", "link")]
    for name, value in found.metrics.items():
        assert f"<td>{name}</td><td class=number>{value:.4g}</td>" in page, "each measure is explained"
    assert "No curves" in page
    assert sum(tag == "svg" for tag, _ in tags) == 2


def test_the_histogram_is_of_all_augmentations_and_images(
    encoder: LoadedEncoder, found: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []

    def seen(values: Sequence[float], low: float, high: float, **options: Any) -> str:
        drawn.append(list(values))
        return histogram(values, low, high, **options)

    monkeypatch.setattr(report, "histogram", seen)
    page = render(encoder, found)
    assert drawn == [[value for row in found.structure.cosines.tolist() for value in row]]
    assert len(drawn[0]) == 20 * 20
    assert "20 images, each under the same 20 augmentations" in page


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, "Trained as CARE (base simclr, objective infonce)", ()),
        ({}, "temperature 0.5, augmentation strength 1, batch size 32, 4 splits and seed", ()),
        ({"equivariance_weight": 0.0}, "SimCLR (CARE with equivariance weight 0)", (" splits",)),
        ({"base": "moco"}, "CARE on MoCo-v2 (base moco, objective infonce)", ()),
        ({"base": "barlow_twins"}, "with augmentation strength 1, batch size 32, 4 splits", ("temperature",)),
        ({"objective": "none"}, "(base simclr, objective none)", ("temperature",)),
        (
            {"base": "barlow_twins", "equivariance_weight": 0.0},
            "objective infonce) for 100 epochs with augmentation strength 1, batch size 32 and",
            ("temperature", " splits"),
        ),
    ],
)
def test_what_it_was_trained_with_leaves_out_what_does_nothing(
    encoder: LoadedEncoder, found: Findings, change: dict[str, Any], said: str, unsaid: Sequence[str]
) -> None:
    other = copy.copy(encoder)
    other.config = TrialConfig.model_validate({**encoder.config.model_dump(), **change})
    about = render(other, found).partition("<p>")[2].partition("</p>")[0]
    assert said in about
    assert not [words for words in unsaid if words in about]


def test_curves_are_of_the_measurements_given(encoder: LoadedEncoder, found: Findings) -> None:
    history = [
        Measurement(epoch=n, metrics={"train_loss": 4 - 0.5 * n, "constant": 1.0}, seconds=1)
        for n in (1, 2, 3)
    ]
    page = render(encoder, found, history)
    assert "<figcaption>train_loss</figcaption>" in page
    assert "<figcaption>constant</figcaption>" not in page
    assert "No curves" in render(encoder, found, history[:1])
    _tags(page)


def test_as_many_classes_are_shown_as_are_said(encoder: LoadedEncoder, tiny: Dataset) -> None:
    def of_classes(num_classes: int) -> tuple[str, int]:
        validation = Split(tiny.validation.images, torch.arange(20) % num_classes)
        names = tuple(f"class {n}" for n in range(num_classes))
        seen = examine(encoder, dataclasses.replace(tiny, validation=validation, class_names=names))
        return render(encoder, seen), seen.neighbors.height // 92  # pixels of a row

    page, rows = of_classes(10)
    assert "A validation image of each class, then" in page
    assert rows == 10
    page, rows = of_classes(12)
    assert "A validation image of each of the first 10 classes, then" in page
    assert rows == 10


def test_other_images_are_told_and_names_are_escaped(encoder: LoadedEncoder, tiny: Dataset) -> None:
    names = ("<script>alert(1)</script>", *tiny.class_names[1:])
    others = dataclasses.replace(
        tiny, name="<b>others</b>", class_names=names, fingerprint="1" * 64, mean=(0.0, 0.0, 0.0)
    )
    seen = examine(encoder, others)
    assert not seen.same_images
    assert seen.data.mean == tiny.mean, "an encoder keeps the statistics it was trained with"
    page = render(encoder, seen)
    assert "was not trained with" in page
    assert "<script" not in page
    assert "<b>" not in page


def test_the_test_split_is_not_read(encoder: LoadedEncoder, tiny: Dataset) -> None:
    poisoned = dataclasses.replace(tiny, test=Split(None, None))  # type: ignore[arg-type]
    assert examine(encoder, poisoned).metrics


# --- charts -------------------------------------------------------------------------------------------------


def _bars(chart: str) -> list[tuple[float, float]]:
    return [(float(x), float(h)) for x, h in re.findall(r'<rect x="([\d.]+)".*? height="([\d.]+)"', chart)]


def test_bars_are_as_high_as_the_shares() -> None:
    chart = histogram([-1, -0.9, 0.1, 1, 1, 1, 5], -1, 1, num_bins=4, x_label="x & y")
    _tags(chart)
    (left, low), (middle, least), (right, high) = _bars(chart)
    assert left < middle < right
    assert (low / high, least / high) == pytest.approx((2 / 3, 1 / 3), abs=0.01)
    assert "x &amp; y" in chart


def test_charts_of_one_value_or_none() -> None:
    _tags(histogram([], 0, 1, num_bins=3, x_label="x"))
    _tags(curves({"a": [(1, 2)]}, x_label="epoch"))
    flat = curves({"a": [(1, 0.0), (2, 0.0)], "<b>": [(1, 0.0)]}, x_label="epoch", from_zero=True)
    _tags(flat)
    assert "&lt;b&gt;" in flat
    assert "nan" not in flat


def test_a_curve_goes_up_where_its_values_do() -> None:
    (points,) = re.findall(r'points="([^"]+)"', curves({"a": [(0, 1), (1, 3), (2, 2)]}, x_label="epoch"))
    xs, ys = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    assert list(xs) == sorted(xs)
    assert ys[1] < ys[2] < ys[0], "pixels count downwards"
