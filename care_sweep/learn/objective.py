"""What does CARE minimise? A contrastive loss of two views, and equivariance to rotations of the embedding.

Shape suffixes: B images, D dimensions, S splits, C = B / S images of a split, V = 2B views, K keys of a
queue.

    L_CARE = L_contrast + equivariance_weight * L_equi

L_contrast is InfoNCE (SimCLR's, or MoCo's against a queue), one of its two terms, or Barlow Twins' loss.
Every loss is a scalar and is computed in float32 or more, under autocast too.

Source: Gupta et al., "Structuring Representation Geometry with Rotationally Equivariant Contrastive
Learning", ICLR 2024, arXiv 2306.13924, Sections 3 and 5.2, Algorithm 1.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = [
    "alignment",
    "at_least_single",
    "barlow_twins",
    "info_nce",
    "orthogonal_equivariance",
    "queue_info_nce",
    "uniformity",
]

_LEAST_TEMPERATURE = 1e-30  # sums of similarities divided by it are still finite in float32
_BATCH_NORM_EPSILON = 1e-5  # torch's default, which Barlow Twins' published code has

_Maker = Callable[[int, torch.device], Tensor]

# --- two views of each image --------------------------------------------------------------------------------


def info_nce(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> Tensor:
    """The InfoNCE loss of SimCLR over 2B views, a scalar.

    Each view is classified among the 2B - 1 others; its positive is the other view of the same image, which
    stands in the denominator too:

        -mean log( exp(z.z+/tau) / (exp(z.z+/tau) + sum_negatives exp(z.z-/tau)) )

    Args:
        z1, z2: (B, D), unit rows; row i of both comes from image i.
        temperature: tau, above 0; as a tensor (a scalar on the device) it is not looked at, which would make
            the device wait.

    Raises:
        ValueError: the shapes differ, are not (B, D) with B >= 2 and D >= 1, or the temperature is not above
            0 (1e-30 or more, so that its quotients are float32's) and finite.
        TypeError: the temperature is neither a number nor a tensor.
    """
    _check_pair(z1, z2)
    _check_temperature(temperature)
    z_VD = at_least_single(torch.cat([z1, z2]))
    itself_VV = _itself(len(z_VD), z_VD.device)
    logits_VV = (_product(z_VD, z_VD.T) / temperature).masked_fill(itself_VV, float("-inf"))
    return cross_entropy(logits_VV, _positive(len(z1), z_VD.device))


def alignment(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> Tensor:
    """The term of InfoNCE that pulls the two views of an image together, a scalar: L_inv (Section 5.2).

        -mean log exp(z.z+/tau)

    Alone it is least where all views are one point.

    Args, Raises: as `info_nce`.
    """
    _check_pair(z1, z2)
    _check_temperature(temperature)
    return -(at_least_single(z1) * at_least_single(z2)).sum(1).mean() / temperature


def uniformity(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> Tensor:
    """The term of InfoNCE that drives the views of different images apart, a scalar: L_unif (Section 5.2).

        mean log sum_negatives exp(z.z-/tau)

    The negatives of a view are the 2B - 2 views of other images. `info_nce` is `alignment` plus this only
    where there are many negatives, for the positive stands in its denominator too.

    Args, Raises: as `info_nce`.
    """
    _check_pair(z1, z2)
    _check_temperature(temperature)
    z_VD = at_least_single(torch.cat([z1, z2]))
    own_image_VV = _own_image(len(z1), z_VD.device)
    return (_product(z_VD, z_VD.T) / temperature).masked_fill(own_image_VV, float("-inf")).logsumexp(1).mean()


def queue_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float | Tensor) -> Tensor:
    """The InfoNCE loss of MoCo, a scalar: each query finds its key among the keys of other images.

        -mean log( exp(q.k+/tau) / (exp(q.k+/tau) + sum_queue exp(q.k-/tau)) )

    Source: He et al., "Momentum Contrast", CVPR 2020, arXiv 1911.05722, Equation 1 and Algorithm 1.

    Args:
        queries, keys: (B, D), unit rows; row i of both comes from image i. Keys carry no gradient in MoCo.
        queue: (K, D), unit rows: the negatives of every query.
        temperature: tau, above 0.

    Raises:
        ValueError, TypeError: queries, keys and temperature as in `info_nce`; the queue is not (K, D) with
            K >= 1, or not of the queries' type.
    """
    _check_pair(queries, keys)
    _check_temperature(temperature)
    if queue.ndim != 2 or len(queue) < 1 or queue.shape[1] != queries.shape[1]:
        raise ValueError(
            f"the queue must be (K, {queries.shape[1]}) with 1 key or more, it is {tuple(queue.shape)}"
        )
    q_BD, k_BD, queue_KD = (at_least_single(z) for z in (queries, keys, queue))
    if not q_BD.dtype == k_BD.dtype == queue_KD.dtype:
        raise ValueError(
            f"the queue must be of the type of queries and keys, {queries.dtype} and {keys.dtype}; it is "
            f"{queue.dtype}"
        )
    positive_B1 = (q_BD * k_BD).sum(1, keepdim=True)
    logits_BN = torch.cat([positive_B1, _product(q_BD, queue_KD.T)], 1) / temperature
    return (logits_BN.logsumexp(1) - logits_BN[:, 0]).mean()


def barlow_twins(y1: Tensor, y2: Tensor, redundancy_weight: float | Tensor) -> Tensor:
    """The loss of Barlow Twins, a scalar: the two views' cross-correlation should be the identity.

        sum_i (1 - C_ii)^2 + redundancy_weight * sum_i sum_{j != i} C_ij^2

    C_ij = mean_b n1_bi n2_bj, where n is y with mean 0 and variance 1 in each dimension over the batch. As in
    the published code that is batch normalisation without affine parameters: the variance is the biased one
    and has 1e-5 added. The rows are NOT of unit length; a sum, not a mean, over dimensions.

    Source: Zbontar et al., "Barlow Twins", ICML 2021, arXiv 2103.03230, Equations 1 and 2; facebookresearch/
    barlowtwins, whose redundancy_weight is 0.0051.

    Args:
        y1, y2: (B, D), projector outputs; row i of both comes from image i.
        redundancy_weight: the weight of what is off the diagonal, 0 or more; a tensor as in `info_nce`.

    Raises:
        ValueError: the shapes differ, are not (B, D) with B >= 2 and D >= 1, or the weight is below 0.
        TypeError: the weight is neither a number nor a tensor.
    """
    _check_pair(y1, y2)
    _check_redundancy_weight(redundancy_weight)
    correlation_DD = _product(_standardised(y1).T, _standardised(y2)) / len(y1)
    itself_DD = _itself(len(correlation_DD), y1.device)
    agreement = (1 - correlation_DD.diagonal()).square().sum()
    return agreement + redundancy_weight * correlation_DD.masked_fill(itself_DD, 0).square().sum()


def _standardised(y_BD: Tensor) -> Tensor:
    centred_BD = at_least_single(y_BD)
    centred_BD = centred_BD - centred_BD.mean(0)
    return centred_BD * (centred_BD.square().mean(0) + _BATCH_NORM_EPSILON).rsqrt()


# --- one augmentation for all images of a split -------------------------------------------------------------


def orthogonal_equivariance(z1: Tensor, z2: Tensor, num_splits: int) -> Tensor:
    """How far the two views of each split are from being one rotation apart, a scalar: L_equi.

    All images of a split share one augmentation in z1 and another in z2 (Algorithm 1). The two are a rotation
    apart exactly where their Gram matrices agree (Section 3), so the loss is the mean of

        (z1_i . z1_j - z2_i . z2_j)^2

    over the ordered pairs i != j of a split, averaged over the splits. The published code computes
    2 * mean_i sum_{j != i} of it, which grows with C: ours times 2 * (C - 1) is the published value.

    Args:
        z1, z2: (B, D), unit rows; split s holds rows s*C to (s+1)*C.
        num_splits: S, a divisor of B that leaves at least 2 images a split.

    Raises:
        ValueError: the shapes differ, are not (B, D) with D >= 1, or B images cannot be cut into S such
            splits.
        TypeError: S is not a whole number.
    """
    _check_pair(z1, z2)
    num_images, num_dimensions = z1.shape
    if not isinstance(num_splits, int) or isinstance(num_splits, bool):
        raise TypeError(f"num_splits must be a whole number, it is {num_splits!r}")
    if num_splits < 1 or num_images % num_splits or num_images < 2 * num_splits:
        raise ValueError(
            f"{num_images} images cannot be cut into {num_splits} equal splits of 2 or more: "
            "use a divisor of the batch size, at most half of it"
        )
    z_2SCD = at_least_single(torch.stack([z1, z2])).view(2, num_splits, -1, num_dimensions)
    gram_2SCC = _product(z_2SCD, z_2SCD.mT)
    difference_SCC = gram_2SCC[0] - gram_2SCC[1]
    size = difference_SCC.shape[-1]
    itself_CC = _itself(size, z1.device)
    return difference_SCC.masked_fill(itself_CC, 0).square().sum() / (num_splits * size * (size - 1))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, which autocast would take in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


# --- masks, made once ---------------------------------------------------------------------------------------


def _made_once(make: _Maker) -> _Maker:
    """Keeps what was made last; compiled code makes it in passing instead."""
    kept = lru_cache(maxsize=4)(make)

    def made(size: int, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():
            return make(size, device)
        with torch.inference_mode(False):  # a tensor born in inference mode could never serve training
            return kept(size, device)

    return made


@_made_once
def _itself(size: int, device: torch.device) -> Tensor:
    """(size, size), true on the diagonal."""
    return torch.eye(size, dtype=torch.bool, device=device)


@_made_once
def _own_image(num_images: int, device: torch.device) -> Tensor:
    """(V, V), true where both views are of one image."""
    return torch.eye(num_images, dtype=torch.bool, device=device).repeat(2, 2)


@_made_once
def _positive(num_images: int, device: torch.device) -> Tensor:
    """(V), the row of each view's positive."""
    return torch.arange(2 * num_images, device=device).roll(num_images)


# --- checks -------------------------------------------------------------------------------------------------


def _check_pair(z1: Tensor, z2: Tensor) -> None:
    if z1.shape != z2.shape or z1.ndim != 2 or len(z1) < 2 or z1.shape[1] == 0:
        raise ValueError(
            "the two views must be of one shape (B, D) with 2 images and 1 dimension or more, "
            f"they are {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    if not z1.is_floating_point() or not z2.is_floating_point():
        raise ValueError(f"embeddings must be floating point, they are {z1.dtype} and {z2.dtype}")


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        return
    _check_number("temperature", temperature)
    if not _LEAST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(
            f"temperature must be above 0 ({_LEAST_TEMPERATURE:g} or more) and finite, it is {temperature}"
        )


def _check_redundancy_weight(redundancy_weight: float | Tensor) -> None:
    if isinstance(redundancy_weight, Tensor):
        return
    _check_number("redundancy_weight", redundancy_weight)
    if not 0 <= redundancy_weight < math.inf:
        raise ValueError(f"redundancy_weight must be 0 or more, it is {redundancy_weight}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, it is {value!r}")


def at_least_single(z: Tensor) -> Tensor:
    """In float32, unless it is of higher precision already."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
