"""What does one number say of features or embeddings? Pure functions on tensors, for `evaluate` and studies.

Shape suffixes: N images (M of them in a chunk), Q queries, F features, K neighbours, C classes, P probes,
B images of a batch, D dimensions of the projected embedding.

f and f_a are projected unit embeddings of images and of the same images augmented, one image a row. What
compares or counts embeddings is computed in float64, on their device. Every measure refuses an input that is
not finite, a NaN or an infinity anywhere, with `NotFiniteError`, a ValueError.
Source: Gupta et al., ICLR 2024, arXiv 2306.13924, Sections 4, 5.2 and 5.3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from care_sweep.learn.randomness import generator

__all__ = [
    "NotFiniteError",
    "alignment",
    "angle_cosines",
    "dimension_spread",
    "effective_rank",
    "hue_following",
    "knn_accuracy",
    "linear_probes",
    "mean_colour_hue",
    "neighbor_change",
    "probe_accuracy",
    "relative_equivariance",
    "uniformity",
    "wahba_error",
    "wahba_rotation",
]

_KNN_TEMPERATURE = 0.5  # weights exp(similarity / 0.5), as in the published code
_PROBE_BATCH_SIZE = 512
_PROBE_LEARNING_RATE = 1e-3
_PROBE_WEIGHT_DECAY = 1e-6
_CHUNK = 512


class NotFiniteError(ValueError):
    """What is to be measured has a NaN or an infinity in it."""


# --- what features tell of classes --------------------------------------------------------------------------


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, num_neighbors: int
) -> float:
    """Share of queries whose weighted nearest neighbours in the bank vote for their class, in [0, 1].

    Cosine similarity of features; a neighbour's vote weighs exp(similarity / 0.5). Equal votes go to the
    lower class number.

    Args:
        bank, bank_labels: features (N, F) with known class numbers (N).
        queries, query_labels: features (Q, F) and their class numbers (Q).
        num_neighbors: K, 1 or more, capped at N.

    Raises:
        ValueError: no bank, no queries or no neighbours; features of other shapes; labels of another number.
    """
    _check_labelled("the bank", bank, bank_labels)
    _check_labelled("queries", queries, query_labels)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"the bank has {bank.shape[1]} features, queries have {queries.shape[1]}")
    if num_neighbors < 1:
        raise ValueError(f"num_neighbors must be 1 or more, it is {num_neighbors}")
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


def linear_probes(
    features: Tensor, labels: Tensor, *, num_classes: int, num_epochs: int, seeds: Sequence[int]
) -> list[nn.Linear]:
    """Linear classifiers on frozen features, one a seed: Adam 1e-3, weight decay 1e-6, batches of 512
    (method.md).

    The last batch of an epoch may be smaller. Weights start at 0, so a seed moves only the order of images.
    Two things differ from the published probe: that one sees train images augmented anew each epoch, ours the
    features of clean images, computed once; and its layer starts at torch's random weights. The objective is
    convex, so that both starts lead to one end, and the spread over seeds is that of the order alone.

    All are trained at once, as one batched product: each as if it were alone.

    Args:
        features, labels: (N, F) and class numbers (N) below `num_classes`.

    Raises:
        ValueError: no features, of another shape, or labels of another number or outside the classes.
    """
    _check_labelled("the probe's features", features, labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"class numbers must be below num_classes {num_classes}, they are {low} to {high}")
    weight_PFC = features.new_zeros(len(seeds), features.shape[1], num_classes).requires_grad_()
    bias_P1C = features.new_zeros(len(seeds), 1, num_classes).requires_grad_()
    optimizer = torch.optim.Adam(
        [weight_PFC, bias_P1C], lr=_PROBE_LEARNING_RATE, weight_decay=_PROBE_WEIGHT_DECAY, fused=True
    )
    sources = [generator(seed, "probe") for seed in seeds]
    with torch.enable_grad():
        for _ in range(num_epochs):
            orders = [torch.randperm(len(features), generator=source) for source in sources]
            order_PN = torch.stack(orders).to(features.device)
            for rows_PB in torch.split(order_PN, _PROBE_BATCH_SIZE, 1):
                scores_PBC = torch.baddbmm(bias_P1C, features[rows_PB], weight_PFC)
                loss = cross_entropy(scores_PBC.flatten(0, 1), labels[rows_PB].flatten(), reduction="sum")
                optimizer.zero_grad()
                (loss / rows_PB.shape[1]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return [_linear(weight.T, bias[0]) for weight, bias in zip(weight_PFC, bias_P1C, strict=True)]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    probe = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        probe.weight.copy_(weight)
        probe.bias.copy_(bias)
    return probe.requires_grad_(False)


def probe_accuracy(probe: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Share of images the probe puts into their class, in [0, 1].

    Raises:
        ValueError: no features, of another shape, or labels of another number.
    """
    _check_labelled("the probe's features", features, labels)
    return int((probe(features).argmax(1) == labels).sum()) / len(labels)


# --- what augmentations do to embeddings --------------------------------------------------------------------


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
    before_ND, after_ND = _pair(f, f_a, least=2)
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


def wahba_error(f: Tensor, f_a: Tensor) -> float:
    """W_f, the least ||R F - F_a||_F over R in SO(D): how far an augmentation is from acting as one rotation.

    F and F_a have the embeddings as columns (Section 4). 0 exactly where one rotation maps f to f_a; divided
    by sqrt(N) it is the root mean square distance that the best rotation leaves between an image's two
    embeddings, and lies in [0, 2].

    Args:
        f, f_a: (N, D).

    Raises:
        ValueError: the shapes differ or are not (N, D) with N >= 1 and D >= 1.
    """
    before_ND, after_ND = _pair(f, f_a, least=1)
    rotated_ND = before_ND @ wahba_rotation(before_ND, after_ND).T
    return (rotated_ND - after_ND).square().sum().sqrt().item()


def wahba_rotation(f: Tensor, f_a: Tensor) -> Tensor:
    """The rotation (D, D), float64, of `wahba_error`: f @ R.T is as near to f_a as a rotation brings it.

    With U S V^T the singular value decomposition of F_a F^T it is U diag(1, .., 1, det U det V) V^T: the last
    sign excludes reflections (Section 4). It is one of several where the images span fewer than D - 1
    dimensions.

    Raises:
        ValueError: as `wahba_error`.
    """
    before_ND, after_ND = _pair(f, f_a, least=1)
    left_DD, _, right_DD = torch.linalg.svd(after_ND.T @ before_ND)
    sign = torch.linalg.det(left_DD) * torch.linalg.det(right_DD)
    signs_D = torch.ones(f.shape[1], dtype=torch.float64, device=f.device)
    signs_D[-1] = sign.sign()
    rotation_DD: Tensor = (left_DD * signs_D) @ right_DD
    return rotation_DD


def angle_cosines(f: Tensor, f_a: Tensor) -> Tensor:
    """The cosine (N), float64, of the angle between each image's two embeddings; the angle histogram's data.

    Their variance over images and drawn augmentations is lower with CARE than with SimCLR (Section 5.3): an
    augmentation turns all embeddings alike.

    Raises:
        ValueError: the shapes differ or are not (N, D) with N >= 1 and D >= 1.
    """
    before_ND, after_ND = _pair(f, f_a, least=1)
    return (normalize(before_ND) * normalize(after_ND)).sum(1)


def alignment(f: Tensor, f_a: Tensor) -> float:
    """The mean squared distance of two views' embeddings (Wang and Isola, 2020, with alpha = 2); 0 to 4.

    Raises:
        ValueError: the shapes differ or are not (N, D) with N >= 1 and D >= 1.
    """
    before_ND, after_ND = _pair(f, f_a, least=1)
    return (before_ND - after_ND).square().sum(1).mean().item()


# --- how embeddings fill the sphere: collapse detectors -----------------------------------------------------


def uniformity(f: Tensor) -> float:
    """log of the mean of exp(-2 ||f(x) - f(x')||^2) over pairs x != x' (Wang and Isola, 2020, with t = 2).

    0 where all embeddings are one point, lower the more evenly they fill the sphere.

    Args:
        f: (N, D).

    Raises:
        ValueError: the shape is not (N, D) with N >= 2 and D >= 1.
    """
    f_ND = _matrix(f, least=2)
    total = torch.zeros((), dtype=torch.float64, device=f.device)
    for rows in torch.split(torch.arange(len(f), device=f.device), _CHUNK):
        potential_MN = (-2 * _squared_distances(f_ND, rows)).exp()
        total += potential_MN.scatter_(1, rows.unsqueeze(1), 0).sum()
    return (total / (len(f) * (len(f) - 1))).log().item()


def effective_rank(f: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values over their sum (Garrido et al., 2023, equation 1).

    From 1 (all embeddings on one line) to min(N, D); 0 where all are zero. Embeddings are not centred, as
    published; the published 1e-7 on each share is left out. It compares runs of one method: a guard, not an
    objective.

    Args:
        f: (N, D), of any length.

    Raises:
        ValueError: the shape is not (N, D) with N >= 1 and D >= 1.
    """
    f_ND = _matrix(f, least=1)
    values = torch.linalg.svdvals(f_ND)
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total > 0 else 0.0


def dimension_spread(f: Tensor) -> Tensor:
    """The standard deviation (D), float64, of each dimension over the images.

    1 / sqrt(D) in each is what embeddings spread evenly over the sphere have; 0 in all is collapse.

    Args:
        f: (N, D).

    Raises:
        ValueError: the shape is not (N, D) with N >= 1 and D >= 1.
    """
    return _matrix(f, least=1).std(0, correction=0)


# --- retrieval under a change of colour ---------------------------------------------------------------------


def neighbor_change(before: Tensor, after: Tensor) -> float:
    """The share of the changed queries' K nearest neighbours that the unchanged ones had not, in [0, 1].

    0 is an encoder that does not see the change (Section 5.3).

    Args:
        before, after: (Q, K) row numbers in the bank, in any order; a row has no number twice.

    Raises:
        ValueError: the shapes differ, are not (Q, K), or are empty.
    """
    if before.shape != after.shape or before.ndim != 2 or before.numel() == 0:
        raise ValueError(
            "needs neighbours of one shape (Q, K) with 1 query and 1 neighbour or more, "
            f"they are {tuple(before.shape)} and {tuple(after.shape)}"
        )
    kept_QK = (after.unsqueeze(2) == before.unsqueeze(1)).any(2)
    return 1 - kept_QK.double().mean().item()


def mean_colour_hue(images: Tensor) -> Tensor:
    """The mean colour's place on the colour circle, complex128 (N): angle is hue, length chroma.

    Red is at 1, green and blue are a third of a turn to either side, gray is 0. The hue of HSV differs by at
    most 1.2 degrees. Being linear in the pixels, the mean over several images is that of their mean colour.

    Args:
        images: (N, 3, h, w), uint8 or float in [0, 1].

    Raises:
        ValueError: the images are not (N, 3, h, w).
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"needs RGB images of shape (N, 3, h, w), they are {tuple(images.shape)}")
    _check_finite(images)
    pixels = images.double() if images.is_floating_point() else images.double() / 255
    red, green, blue = pixels.mean((2, 3)).unbind(1)
    return torch.complex(red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue))


def hue_following(before: Tensor, after: Tensor, shift: float) -> float:
    """Which share of the queries' change of hue their neighbours' mean hue makes: 1 follows, 0 stays.

    The mean turn from `before` to `after`, each query weighted by the chroma of both, as a share of `shift`:
    neighbours that are gray have no hue to tell of. nan where all are.

    Args:
        before, after: complex (Q), each query's neighbours' mean of `mean_colour_hue`, for the query as it is
            and with its hue moved.
        shift: of the queries' hue, as a share of the circle in [-0.5, 0.5], not 0.

    Raises:
        ValueError: the shapes differ or are not (Q), or the shift is 0 or outside.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ValueError(
            "needs one number a query, in two tensors of one shape (Q) with 1 query or more, "
            f"they are {tuple(before.shape)} and {tuple(after.shape)}"
        )
    if not 0 < abs(shift) <= 0.5:
        raise ValueError(f"the shift must be in [-0.5, 0.5] and not 0, it is {shift}")
    _check_finite(before, after)
    turn = (after * before.conj()).sum()
    return (turn.angle() / (2 * math.pi * shift)).item() if turn.abs() > 0 else math.nan


# --- what all of them take ----------------------------------------------------------------------------------


def _pair(f: Tensor, f_a: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    if f.shape != f_a.shape or f.ndim != 2 or len(f) < least or f.shape[1] == 0:
        raise ValueError(
            f"needs two embeddings of one shape (N, D) with {_images(least)} or more, "
            f"they are {tuple(f.shape)} and {tuple(f_a.shape)}"
        )
    _check_finite(f, f_a)
    return f.double(), f_a.double()


def _matrix(f: Tensor, *, least: int) -> Tensor:
    if f.ndim != 2 or len(f) < least or f.shape[1] == 0:
        raise ValueError(
            f"needs embeddings of shape (N, D) with {_images(least)} or more, they are {tuple(f.shape)}"
        )
    _check_finite(f)
    return f.double()


def _check_labelled(whose: str, features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or len(features) == 0 or features.shape[1] == 0:
        raise ValueError(f"{whose} must be (N, F) with 1 image or more, not {tuple(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{whose}: {len(features)} images have labels of shape {tuple(labels.shape)}")
    _check_finite(features)


def _check_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise NotFiniteError(f"{bad} of {tensor.numel()} values to be measured are not finite")


def _images(least: int) -> str:
    return "1 image" if least == 1 else f"{least} images"
