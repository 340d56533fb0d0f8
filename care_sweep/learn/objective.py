"""What does CARE minimise? InfoNCE, and equivariance to rotations of the embedding.

Shape suffixes: B images, D dimensions, S splits, C = B / S images of a split, V = 2B views.

    L_CARE = L_InfoNCE + equivariance_weight * L_equi

Source: Gupta et al., "Structuring Representation Geometry with Rotationally Equivariant Contrastive
Learning", ICLR 2024, arXiv 2306.13924, Sections 3 and 5.2, Algorithm 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["info_nce", "orthogonal_equivariance"]


def info_nce(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The InfoNCE loss of SimCLR over 2B views, a scalar.

    Each view is classified among the 2B - 1 others; its positive is the other view of the same image, which
    stands in the denominator too:

        -mean log( exp(z.z+/tau) / (exp(z.z+/tau) + sum_negatives exp(z.z-/tau)) )

    Args:
        z1, z2: (B, D), unit rows; row i of both comes from image i. Half precision is computed in float32.
        temperature: tau, above 0.

    Raises:
        ValueError: the shapes differ, are not (B, D) with B >= 2, or the temperature is not above 0.
    """
    _check_pair(z1, z2)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, it is {temperature}")
    z_VD = _at_least_single(torch.cat([z1, z2]))
    num_images = len(z1)
    itself_VV = torch.eye(2 * num_images, dtype=torch.bool, device=z_VD.device)
    logits_VV = (z_VD @ z_VD.T / temperature).masked_fill(itself_VV, float("-inf"))
    positive_V = torch.arange(2 * num_images, device=z_VD.device).roll(num_images)
    return cross_entropy(logits_VV, positive_V)


def orthogonal_equivariance(z1: Tensor, z2: Tensor, num_splits: int) -> Tensor:
    """How far the two views of each split are from being one rotation apart, a scalar: L_equi.

    All images of a split share one augmentation in z1 and another in z2 (Algorithm 1). The two are a rotation
    apart exactly where their Gram matrices agree (Section 3), so the loss is the mean of

        (z1_i . z1_j - z2_i . z2_j)^2

    over the ordered pairs i != j of a split, averaged over the splits. The published code computes
    2 * mean_i sum_{j != i} of it, which grows with C: ours times 2 * (C - 1) is the published value.

    Args:
        z1, z2: (B, D), unit rows; split s holds rows s*C to (s+1)*C. Half precision is computed in float32.
        num_splits: S, a divisor of B that leaves at least 2 images a split.

    Raises:
        ValueError: the shapes differ, are not (B, D), or B images cannot be cut into S such splits.
    """
    _check_pair(z1, z2)
    num_images, num_dimensions = z1.shape
    if num_splits < 1 or num_images % num_splits or num_images < 2 * num_splits:
        raise ValueError(
            f"{num_images} images cannot be cut into {num_splits} equal splits of 2 or more: "
            "use a divisor of the batch size, at most half of it"
        )
    z_2SCD = _at_least_single(torch.stack([z1, z2])).view(2, num_splits, -1, num_dimensions)
    gram_2SCC = z_2SCD @ z_2SCD.mT
    difference_SCC = gram_2SCC[0] - gram_2SCC[1]
    size = difference_SCC.shape[-1]
    itself_CC = torch.eye(size, dtype=torch.bool, device=z1.device)
    return difference_SCC.masked_fill(itself_CC, 0).square().sum() / (num_splits * size * (size - 1))


def _check_pair(z1: Tensor, z2: Tensor) -> None:
    if z1.shape != z2.shape or z1.ndim != 2 or len(z1) < 2:
        raise ValueError(
            "the two views must be of one shape (B, D) with 2 images or more, "
            f"they are {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    if not z1.is_floating_point() or not z2.is_floating_point():
        raise ValueError(f"embeddings must be floating point, they are {z1.dtype} and {z2.dtype}")


def _at_least_single(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
