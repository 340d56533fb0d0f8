"""What do the measures say of an encoder on a dataset? kNN, probes, and how augmentations act on embeddings.

Shape suffixes: N images, A augmentations, Q queries, K neighbours, F features, D dimensions of the projected
embedding.

Everything reads the train and validation splits only. `measures` has the formulas.
"""

import copy
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import CareModel
from care_sweep.learn.measures import (
    alignment,
    angle_cosines,
    dimension_spread,
    effective_rank,
    hue_following,
    knn_accuracy,
    linear_probes,
    mean_colour_hue,
    neighbor_change,
    probe_accuracy,
    relative_equivariance,
    uniformity,
    wahba_error,
)
from care_sweep.learn.precision import ieee_convolutions
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import apply_views, draw_shared_views, hue_change, normalise
from care_sweep.spec import TrialConfig

__all__ = [
    "Evaluation",
    "Features",
    "Retrieval",
    "Structure",
    "embed",
    "embedding_metrics",
    "embedding_metrics_of_batches",
    "encode",
    "evaluate_encoder",
    "evaluate_fully",
    "extract_features",
    "fit_probes",
    "knn_metrics",
    "measure_retrieval",
    "measure_structure",
    "probe_metrics",
    "project",
]

_CHUNK = 512  # images of 32 pixels, or of fewer, that are made float and encoded at once
_GPU_CHUNK = 2048  # fewer leave a GPU waiting for its next kernel
_SIDE = 32
_NUM_MEASURED_AUGMENTATIONS = 20  # as published for the angle histogram and the Wahba error
_NUM_PROBE_SEEDS = 3
_HUE_SHIFTS = (-0.1, 0.1)  # the most that augmentations of strength 1 move the hue
_NUM_RETRIEVED = 5


@dataclass(frozen=True)
class Features:
    """What the encoder makes of both splits: features (N, F) and class numbers (N), on one device."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor


# --- an encoder on a dataset --------------------------------------------------------------------------------


@ieee_convolutions()
def encode(
    model: CareModel,
    images: Tensor,
    data: Dataset,
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Features (N, F), float32, of uint8 or [0, 1] images, in chunks, with BatchNorm's running statistics.

    Images may stay on the host: one chunk of them at a time is made float, on the device. The encoder
    computes in `precision`, and float32 is IEEE's on a GPU too.
    """
    most = _GPU_CHUNK if device.type == "cuda" else _CHUNK
    with _frozen(model), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        found = [  # in one loop, so that only one chunk of pixels is alive as float
            model.encoder(normalise(chunk.to(device), data.mean, data.std)).float()
            for chunk in _chunks(images, most)
        ]
        return torch.cat(found)


def _chunks(images: Tensor, most: int) -> Sequence[Tensor]:
    """So many at once if they have 32 x 32 pixels or fewer, of larger ones as many as have those pixels."""
    height, width = images.shape[-2:]
    return torch.split(images, max(1, min(most, most * _SIDE**2 // (height * width))))


def project(model: CareModel, features: Tensor) -> Tensor:
    """Unit embeddings (N, D) of features (N, F), with BatchNorm's running statistics."""
    with _frozen(model):
        return normalize(model.projector(features))


def extract_features(
    model: CareModel, data: Dataset, device: torch.device, precision: torch.dtype = torch.float32
) -> Features:
    """Features of train and validation; the model's mode is as before afterwards."""
    return Features(
        encode(model, data.train.images, data, device, precision),
        data.train.labels.to(device),
        encode(model, data.validation.images, data, device, precision),
        data.validation.labels.to(device),
    )


@dataclass(frozen=True)
class Evaluation:
    """All measures of an encoder, and what they were computed from."""

    features: Features
    structure: "Structure"
    retrieval: "Retrieval"
    metrics: dict[str, float]


def evaluate_fully(
    model: CareModel,
    data: Dataset,
    config: TrialConfig,
    *,
    device: torch.device,
    features: Features | None = None,
    probes: Sequence[nn.Linear] | None = None,
) -> Evaluation:
    """All measures of an encoder, on validation images, with BatchNorm frozen.

    The metrics are what `knn_metrics` has; `validation_probe_accuracy` of the probe of `config.seed`, and
    with `_mean` and `_spread` (sample standard deviation) over that and the next 2 seeds; what
    `Structure.metrics`, `Retrieval.metrics` and `embedding_metrics` have. `features` and `probes` spare the
    work where the caller has them of this very model.

    Raises:
        NotFiniteError: features or embeddings are not finite.
    """
    features = extract_features(model, data, device) if features is None else features
    structure = measure_structure(model, data, device, features=features)
    retrieval = measure_retrieval(model, data, device, features=features)
    metrics = {
        **knn_metrics(features, config),
        **probe_metrics(features, fit_probes(features, data, config) if probes is None else probes),
        **structure.metrics(),
        **retrieval.metrics(),
        **embedding_metrics(model, features),
    }
    return Evaluation(features, structure, retrieval, metrics)


def evaluate_encoder(
    model: CareModel,
    data: Dataset,
    config: TrialConfig,
    *,
    device: torch.device,
    features: Features | None = None,
    probes: Sequence[nn.Linear] | None = None,
) -> dict[str, float]:
    """The metrics of `evaluate_fully`, alone."""
    found = evaluate_fully(model, data, config, device=device, features=features, probes=probes)
    return found.metrics


def knn_metrics(features: Features, config: TrialConfig) -> dict[str, float]:
    """`validation_knn_accuracy` and `num_validation_images`: what every epoch reports."""
    accuracy = knn_accuracy(
        features.train,
        features.train_labels,
        features.validation,
        features.validation_labels,
        num_neighbors=config.knn_neighbors,
    )
    return {
        "validation_knn_accuracy": accuracy,
        "num_validation_images": float(len(features.validation_labels)),
    }


def embedding_metrics(model: CareModel, features: Features) -> dict[str, float]:
    """How validation embeddings fill the sphere: what shows a collapse, and is cheap enough for every epoch.

    Returns `uniformity`, `effective_rank` and `embedding_spread`, the mean standard deviation of a dimension
    times sqrt(D): 1 where embeddings are spread evenly over the sphere, 0 where they are one point.
    """
    return _fill_metrics(project(model, features.validation))


@ieee_convolutions()
def embedding_metrics_of_batches(model: CareModel, data: Dataset, device: torch.device) -> dict[str, float]:
    """`embedding_metrics` by the batch statistics of the validation images, as training embeds them.

    After few steps BatchNorm's running statistics are still those of the start, and an encoder may look
    collapsed through them alone. At most 512 images are read, evenly spaced, for a source may have them class
    by class; the running statistics do not move.
    """
    twin = copy.deepcopy(model).train()
    images = data.validation.images
    size = min(len(images), _CHUNK)
    rows = torch.arange(size, device=images.device) * len(images) // size
    with torch.no_grad():
        chunk = images[rows].to(device)
        return _fill_metrics(normalize(twin.project(normalise(chunk, data.mean, data.std))))


def _fill_metrics(embeddings_ND: Tensor) -> dict[str, float]:
    return {
        "uniformity": uniformity(embeddings_ND),
        "effective_rank": effective_rank(embeddings_ND),
        "embedding_spread": dimension_spread(embeddings_ND).mean().item() * math.sqrt(embeddings_ND.shape[1]),
    }


def fit_probes(features: Features, data: Dataset, config: TrialConfig) -> list[nn.Linear]:
    """The linear probes of the trial's seed and the next 2, trained on the train split's features."""
    return linear_probes(
        features.train,
        features.train_labels,
        num_classes=len(data.class_names),
        num_epochs=config.probe_epochs,
        seeds=range(config.seed, config.seed + _NUM_PROBE_SEEDS),
    )


def probe_metrics(features: Features, probes: Sequence[nn.Linear]) -> dict[str, float]:
    """The accuracy of the first probe, and mean and spread over all."""
    accuracies = [probe_accuracy(one, features.validation, features.validation_labels) for one in probes]
    return {
        "validation_probe_accuracy": accuracies[0],
        "validation_probe_accuracy_mean": statistics.fmean(accuracies),
        "validation_probe_accuracy_spread": statistics.stdev(accuracies),
    }


# --- how augmentations act ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structure:
    """What drawn augmentations do to the embeddings of N images, each augmentation to all of them alike.

    Attributes:
        cosines: (A, N), float64, on the host: of the angle between f(x) and f(a x).
        relative_equivariance, wahba_error, alignment: one number an augmentation.
    """

    cosines: Tensor
    relative_equivariance: tuple[float, ...]
    wahba_error: tuple[float, ...]
    alignment: tuple[float, ...]

    def metrics(self) -> dict[str, float]:
        """Means over the augmentations, and the variance of the cosines.

        `wahba_error` grows with sqrt(N); `wahba_error_rms` is divided by it. `angle_variance` is over images
        and augmentations, `angle_variance_over_images` the mean of each augmentation's own over the images.
        """
        wahba = statistics.fmean(self.wahba_error)
        return {
            "relative_equivariance": statistics.fmean(self.relative_equivariance),
            "wahba_error": wahba,
            "wahba_error_rms": wahba / math.sqrt(self.cosines.shape[1]),
            "angle_variance": self.cosines.var(correction=0).item(),
            "angle_variance_over_images": self.cosines.var(1, correction=0).mean().item(),
            "alignment": statistics.fmean(self.alignment),
        }


def measure_structure(
    model: CareModel,
    data: Dataset,
    device: torch.device,
    *,
    num_augmentations: int = _NUM_MEASURED_AUGMENTATIONS,
    features: Features | None = None,
) -> Structure:
    """How drawn augmentations of strength 1 act on validation images; the same ones for every trial.

    Their crops have 0.08 of the area or more, whatever `least_crop_scale` a trial has: trials are compared.
    `data`'s mean and deviation must be those that the model was trained with. `features`, if known, are this
    very model's.
    """
    images = data.validation.images
    source = generator(0, "measure")
    known = encode(model, images, data, device) if features is None else features.validation
    before = project(model, known)
    pairs = []
    for _ in range(num_augmentations):
        parameters = draw_shared_views(len(images), 1, data.image_size, 1.0, source)
        after = [
            embed(model, apply_views(chunk.to(device), parameters[: len(chunk)]), data, device)
            for chunk in _chunks(images, _CHUNK)
        ]
        pairs.append((before, torch.cat(after)))
    return Structure(
        cosines=torch.stack([angle_cosines(*pair) for pair in pairs]).cpu(),
        relative_equivariance=tuple(relative_equivariance(*pair) for pair in pairs),
        wahba_error=tuple(wahba_error(*pair) for pair in pairs),
        alignment=tuple(alignment(*pair) for pair in pairs),
    )


@dataclass(frozen=True)
class Retrieval:
    """The train images whose embeddings are nearest to those of Q validation images, and of these recoloured.

    Attributes:
        shifts: how far each change moved the queries' hue, as a share of the circle.
        before: (Q, K) rows of train, nearest first, for the queries as they are.
        after: one (Q, K) for each shift.
        change: share of neighbours that are new, one number a shift (`neighbor_change`).
        following: whether their mean hue follows, one number a shift (`hue_following`).
    """

    shifts: tuple[float, ...]
    before: Tensor
    after: tuple[Tensor, ...]
    change: tuple[float, ...]
    following: tuple[float, ...]

    def metrics(self) -> dict[str, float]:
        """Means over the shifts; images without any colour have no `hue_following`."""
        following = statistics.fmean(self.following)
        return {
            "neighbor_change": statistics.fmean(self.change),
            **({} if math.isnan(following) else {"hue_following": following}),
        }


def measure_retrieval(
    model: CareModel,
    data: Dataset,
    device: torch.device,
    *,
    shifts: Sequence[float] = _HUE_SHIFTS,
    num_neighbors: int = _NUM_RETRIEVED,
    features: Features | None = None,
) -> Retrieval:
    """Retrieval of train images by validation images under changes of the query's hue (Section 5.3).

    `data`'s mean and deviation must be those that the model was trained with. `features`, if known, are this
    very model's.
    """
    bank, queries = data.train.images, data.validation.images
    features = extract_features(model, data, device) if features is None else features
    bank_DN = project(model, features.train).T
    hue_N = torch.cat([mean_colour_hue(chunk) for chunk in _chunks(bank, _CHUNK)])

    def nearest(queries_QD: Tensor) -> Tensor:
        return (queries_QD @ bank_DN).topk(min(num_neighbors, len(bank))).indices.cpu()

    def recoloured(shift: float) -> Iterator[Tensor]:
        for chunk in _chunks(queries, _CHUNK):
            views = apply_views(chunk.to(device), hue_change(len(chunk), shift, data.image_size))
            yield embed(model, views, data, device)

    before = torch.cat([nearest(chunk) for chunk in torch.split(project(model, features.validation), _CHUNK)])
    after = [torch.cat([nearest(chunk) for chunk in recoloured(shift)]) for shift in shifts]
    hue_before, *hues_after = (hue_N[found_QK].mean(1) for found_QK in (before, *after))
    return Retrieval(
        shifts=tuple(shifts),
        before=before,
        after=tuple(after),
        change=tuple(neighbor_change(before, found) for found in after),
        following=tuple(hue_following(hue_before, hue, s) for hue, s in zip(hues_after, shifts, strict=True)),
    )


def embed(model: CareModel, images: Tensor, data: Dataset, device: torch.device) -> Tensor:
    """Projected unit embeddings (N, D) of uint8 or [0, 1] images, in chunks, with BatchNorm frozen."""
    return project(model, encode(model, images, data, device))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
