"""Has an encoder collapsed: do all images lie at one point, or on one line?

Shape suffixes: N images, D dimensions, R = min(N, D) singular values.

Two guards, not objectives: they compare trials of one method, and a higher value is not a better encoder.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["collapse_measures", "dimension_spread", "effective_rank", "sign_of_collapse"]

_RANKME_EPSILON = 1e-7

_LEAST_SPREAD = 0.2
"""Seen with resnet_tiny on cifar10-mini (seed 0, batches of 128) after epochs 1 to 4: L_equi alone 0.12 to
0.10, alignment alone 0.04 to 0.02; with InfoNCE or uniformity 0.78 to 0.99 up to weight 3, and no lower than
0.37 at weight 30; MoCo 0.64 and more. The start has 0.47."""

_LEAST_RANK = 1.5
"""A line has 1, two directions that carry alike have 2. The rank does not see L_equi alone (17 to 20)."""


def effective_rank(z: Tensor) -> float:
    """RankMe: over how many directions the embeddings spread, between 1 and min(N, D).

        exp(-sum_k p_k log p_k),   p_k = sigma_k / sum_l sigma_l + 1e-7

    with sigma the singular values of the embeddings as they are, not centred: 1 where all lie on one line
    through the origin. Embeddings that are all 0 count 1.

    Source: Garrido et al., "RankMe", ICML 2023, arXiv 2210.02885, Equation 1; Roy and Vetterli, 2007.

    Args:
        z: (N, D), one image a row; computed in float64.

    Raises:
        ValueError: the shape is not (N, D) with N >= 2.
    """
    sigma_R = torch.linalg.svdvals(_rows(z))
    total = sigma_R.sum()
    if total == 0:
        return 1.0
    p_R = sigma_R / total + _RANKME_EPSILON
    return float(torch.exp(-(p_R * p_R.log()).sum()))


def dimension_spread(z: Tensor) -> float:
    """How far unit embeddings spread in each dimension: 0 where they are one point, at most 1.

    The standard deviation over images, meaned over dimensions and multiplied by sqrt(D): 1 where the mean is
    0 and all dimensions carry alike, which is what a uniform distribution on the sphere has.

    Source: Chen and He, "SimSiam", CVPR 2021, arXiv 2011.10566, Section 4.1, who draw it without the sqrt(D).

    Args:
        z: (N, D), unit rows, one image a row; computed in float64.

    Raises:
        ValueError: the shape is not (N, D) with N >= 2.
    """
    z_ND = _rows(z)
    return float(z_ND.std(0, correction=0).mean()) * math.sqrt(z_ND.shape[1])


def collapse_measures(embeddings: Tensor) -> dict[str, float]:
    """`effective_rank` and `embedding_spread` of unit embeddings (N, D): what every epoch reports."""
    return {"effective_rank": effective_rank(embeddings), "embedding_spread": dimension_spread(embeddings)}


def sign_of_collapse(metrics: Mapping[str, float]) -> str | None:
    """What in `collapse_measures` says that the embeddings have collapsed; None where nothing does."""
    for name, least in (("embedding_spread", _LEAST_SPREAD), ("effective_rank", _LEAST_RANK)):
        if metrics[name] < least:
            return (
                f"all images are embedded at about one point or on one line: {name} {metrics[name]:.3g} is "
                f"below {least}; an objective with uniformity, such as infonce, or a lower "
                "equivariance_weight keeps them apart"
            )
    return None


def _rows(z: Tensor) -> Tensor:
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"embeddings must be (N, D) with 2 images or more, they are {tuple(z.shape)}")
    return z.double()
