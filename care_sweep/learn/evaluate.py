"""How good is an encoder, judged without labels in its training? kNN, a linear probe, and gamma_f.

Shape suffixes: N images (M of them in a chunk), Q queries, F features, K neighbours, C classes,
D dimensions of the projected embedding.

Everything reads the train and validation splits only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import CareModel
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import apply_views, draw_shared_views, normalise
from care_sweep.spec import TrialConfig

__all__ = [
    "Features",
    "encode",
    "evaluate_encoder",
    "extract_features",
    "knn_accuracy",
    "linear_probe",
    "relative_equivariance",
]

_KNN_TEMPERATURE = 0.5  # weights exp(similarity / 0.5), as in the published code
_PROBE_BATCH_SIZE = 512
_PROBE_LEARNING_RATE = 1e-3
_PROBE_WEIGHT_DECAY = 1e-6
_CHUNK = 512
_NUM_MEASURED_AUGMENTATIONS = 5


@dataclass(frozen=True)
class Features:
    """What the encoder makes of both splits: features (N, F) and class numbers (N), on one device."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor


# --- pure measures ------------------------------------------------------------------------------------------


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, num_neighbors: int
) -> float:
    """Share of queries whose weighted nearest neighbours in the bank vote for their class, in [0, 1].

    Cosine similarity of features; a neighbour's vote weighs exp(similarity / 0.5). Equal votes go to the
    lower class number.

    Args:
        bank, bank_labels: features (N, F) with known class numbers (N).
        queries, query_labels: features (Q, F) and their class numbers (Q).
        num_neighbors: K, capped at N.
    """
    bank_FN = normalize(bank).T
    num_classes = int(bank_labels.max()) + 1
    num_right = torch.zeros((), dtype=torch.int64, device=queries.device)
    for queries_QF, labels_Q in zip(
        torch.split(queries, _CHUNK), torch.split(query_labels, _CHUNK), strict=True
    ):
        similarity_QK, neighbor_QK = (normalize(queries_QF) @ bank_FN).topk(min(num_neighbors, len(bank)))
        votes_QC = torch.zeros(len(queries_QF), num_classes, dtype=bank.dtype, device=bank.device)
        votes_QC.scatter_add_(1, bank_labels[neighbor_QK], (similarity_QK / _KNN_TEMPERATURE).exp())
        num_right += (votes_QC.argmax(1) == labels_Q).sum()
    return int(num_right) / len(queries)


def linear_probe(
    features: Tensor, labels: Tensor, *, num_classes: int, num_epochs: int, seed: int
) -> nn.Linear:
    """A linear classifier on frozen features: Adam 1e-3, weight decay 1e-6, batches of 512 (method.md).

    The last batch of an epoch may be smaller. Weights start at 0, so the seed moves only the order of images.

    Args:
        features, labels: (N, F) and class numbers (N).
    """
    probe = nn.Linear(features.shape[1], num_classes, device=features.device, dtype=features.dtype)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.Adam(
        probe.parameters(), lr=_PROBE_LEARNING_RATE, weight_decay=_PROBE_WEIGHT_DECAY, fused=True
    )
    source = generator(seed, "probe")
    with torch.enable_grad():
        for _ in range(num_epochs):
            order = torch.randperm(len(features), generator=source).to(features.device)
            for rows in torch.split(order, _PROBE_BATCH_SIZE):
                optimizer.zero_grad()
                cross_entropy(probe(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return probe.requires_grad_(False)


def probe_accuracy(probe: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Share of images the probe puts into their class, in [0, 1]."""
    return int((probe(features).argmax(1) == labels).sum()) / len(labels)


def relative_equivariance(f: Tensor, f_a: Tensor) -> float:
    """gamma_f for one augmentation: how far it is from acting as a rotation; lower is more equivariant.

    The mean over ordered pairs x != x' of

        (||f(ax') - f(ax)||^2 - ||f(x') - f(x)||^2)^2 / (||f(ax') - f(x')||^2 + ||f(ax) - f(x)||^2)^2

    (Section 5.2). The denominator makes invariance no way to a low value. A pair that the augmentation does
    not move at all counts 0.

    Args:
        f, f_a: (N, D) projected unit embeddings of the images and of the augmented images, one image a row.

    Raises:
        ValueError: the shapes differ or are not (N, D) with N >= 2.
    """
    if f.shape != f_a.shape or f.ndim != 2 or len(f) < 2:
        raise ValueError(
            "needs two embeddings of one shape (N, D) with 2 images or more, "
            f"they are {tuple(f.shape)} and {tuple(f_a.shape)}"
        )
    before_ND, after_ND = f.double(), f_a.double()
    moved_N = (after_ND - before_ND).square().sum(1)
    total = torch.zeros((), dtype=torch.float64, device=f.device)
    for rows in torch.split(torch.arange(len(f), device=f.device), _CHUNK):
        change_MN = _squared_distances(after_ND, rows) - _squared_distances(before_ND, rows)
        denominator_MN = (moved_N[rows].unsqueeze(1) + moved_N).square()
        ratio_MN = change_MN.square() / denominator_MN.clamp_min(torch.finfo(torch.float64).tiny)
        ratio_MN = ratio_MN.masked_fill(denominator_MN == 0, 0)
        total += ratio_MN.scatter_(1, rows.unsqueeze(1), 0).sum()
    return total.item() / (len(f) * (len(f) - 1))


def _squared_distances(points_ND: Tensor, rows: Tensor) -> Tensor:
    squares_N = points_ND.square().sum(1)
    return squares_N[rows].unsqueeze(1) + squares_N - 2 * points_ND[rows] @ points_ND.T


# --- an encoder on a dataset --------------------------------------------------------------------------------


def encode(model: CareModel, images: Tensor, data: Dataset, device: torch.device) -> Tensor:
    """Features (N, F) of uint8 or [0, 1] images, in chunks, with BatchNorm's running statistics."""
    with _frozen(model):
        chunks = [normalise(chunk.to(device), data.mean, data.std) for chunk in torch.split(images, _CHUNK)]
        return torch.cat([model.encoder(chunk) for chunk in chunks])


def extract_features(model: CareModel, data: Dataset, device: torch.device) -> Features:
    """Features of train and validation; the model's mode is as before afterwards."""
    return Features(
        encode(model, data.train.images, data, device),
        data.train.labels.to(device),
        encode(model, data.validation.images, data, device),
        data.validation.labels.to(device),
    )


def evaluate_encoder(
    model: CareModel,
    data: Dataset,
    config: TrialConfig,
    *,
    device: torch.device,
    features: Features | None = None,
    probe: nn.Linear | None = None,
) -> dict[str, float]:
    """All measures of an encoder, on validation images, with BatchNorm frozen.

    Returns `validation_knn_accuracy`, `validation_probe_accuracy`, `relative_equivariance` (mean over
    5 drawn augmentations of strength 1, the same ones for every trial) and `num_validation_images`.
    `features` and `probe` spare the work where the caller has them of this very model.
    """
    features = extract_features(model, data, device) if features is None else features
    if probe is None:
        probe = fit_probe(features, data, config)
    return {
        **knn_metrics(features, config),
        "validation_probe_accuracy": probe_accuracy(probe, features.validation, features.validation_labels),
        "relative_equivariance": _measured_equivariance(model, data, device),
    }


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


def fit_probe(features: Features, data: Dataset, config: TrialConfig) -> nn.Linear:
    """The linear probe of `config`, trained on the train split's features."""
    return linear_probe(
        features.train,
        features.train_labels,
        num_classes=len(data.class_names),
        num_epochs=config.probe_epochs,
        seed=config.seed,
    )


def _measured_equivariance(model: CareModel, data: Dataset, device: torch.device) -> float:
    """gamma_f on validation; augmentations do not depend on the trial, so that trials can be compared."""
    images = data.validation.images
    source = generator(0, "measure")
    before = _embed(model, images, data, device)
    gammas = []
    for _ in range(_NUM_MEASURED_AUGMENTATIONS):
        parameters = draw_shared_views(len(images), 1, data.image_size, 1.0, source)
        views = [
            apply_views(chunk.to(device), parameters[: len(chunk)]) for chunk in torch.split(images, _CHUNK)
        ]
        gammas.append(relative_equivariance(before, _embed(model, torch.cat(views), data, device)))
    return sum(gammas) / len(gammas)


def _embed(model: CareModel, images: Tensor, data: Dataset, device: torch.device) -> Tensor:
    features_NF = encode(model, images, data, device)
    with _frozen(model):
        return normalize(model.projector(features_NF))


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
