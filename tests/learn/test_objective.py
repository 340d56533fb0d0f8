"""The losses against loops written from the paper, and what must leave them unchanged."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.learn.objective import info_nce, orthogonal_equivariance


def unit_rows(num_rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, 7, generator=source, dtype=torch.float64)).to(dtype)


def rotation(seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(7, 7, generator=source, dtype=torch.float64))
    return q * r.diagonal().sign()


def slow_info_nce(z1: Tensor, z2: Tensor, temperature: float) -> float:
    views = [*z1.double(), *z2.double()]
    num_images, total = len(z1), 0.0
    for i, view in enumerate(views):
        positive = math.exp(float(view @ views[(i + num_images) % (2 * num_images)]) / temperature)
        negatives = 0.0
        for j, other in enumerate(views):
            if j % num_images != i % num_images:
                negatives += math.exp(float(view @ other) / temperature)
        total -= math.log(positive / (positive + negatives))
    return total / len(views)


def slow_equivariance(z1: Tensor, z2: Tensor, num_splits: int) -> float:
    size, total = len(z1) // num_splits, 0.0
    for split in range(num_splits):
        a, b = (z[split * size : (split + 1) * size].double() for z in (z1, z2))
        pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
        total += sum((float(a[i] @ a[j]) - float(b[i] @ b[j])) ** 2 for i, j in pairs) / len(pairs)
    return total / num_splits


def published_equivariance(z1: Tensor, z2: Tensor) -> float:
    """The published code's value of one split: 2 * mean_i sum_{j != i} (G1_ij - G2_ij)^2."""
    difference = (z1 @ z1.T - z2 @ z2.T).square()
    return float(2 * (difference.sum(1) - difference.diagonal()).mean())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_info_nce_is_the_loop(dtype: torch.dtype, tolerance: float, temperature: float) -> None:
    z1, z2 = unit_rows(8, 0, dtype), unit_rows(8, 1, dtype)
    loss = info_nce(z1, z2, temperature)
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert float(loss) == pytest.approx(slow_info_nce(z1, z2, temperature), abs=tolerance, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("num_splits", [1, 2, 3, 6])
def test_equivariance_is_the_loop(dtype: torch.dtype, tolerance: float, num_splits: int) -> None:
    z1, z2 = unit_rows(12, 2, dtype), unit_rows(12, 3, dtype)
    loss = orthogonal_equivariance(z1, z2, num_splits)
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert float(loss) == pytest.approx(slow_equivariance(z1, z2, num_splits), abs=tolerance)


def test_equivariance_times_twice_the_pairs_is_the_published_value_of_each_split() -> None:
    z1, z2 = unit_rows(16, 4), unit_rows(16, 5)
    size = 4
    ours = [
        float(orthogonal_equivariance(a, b, 1)) for a, b in zip(z1.split(size), z2.split(size), strict=True)
    ]
    theirs = [published_equivariance(a, b) for a, b in zip(z1.split(size), z2.split(size), strict=True)]
    assert [2 * (size - 1) * value for value in ours] == pytest.approx(theirs, abs=1e-12)
    assert float(orthogonal_equivariance(z1, z2, 4)) == pytest.approx(sum(ours) / 4, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rotations_of_either_view_leave_equivariance_unchanged(seed: int) -> None:
    z1, z2 = unit_rows(12, 6), unit_rows(12, 7)
    turned = orthogonal_equivariance(z1 @ rotation(seed), z2 @ rotation(seed + 10), 3)
    assert float(turned) == pytest.approx(float(orthogonal_equivariance(z1, z2, 3)), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_views_that_differ_by_one_rotation_are_equivariant(seed: int) -> None:
    z1 = unit_rows(12, 8)
    assert float(orthogonal_equivariance(z1, z1 @ rotation(seed), 3)) == pytest.approx(0, abs=1e-24)


def test_a_rotation_of_all_views_leaves_info_nce_unchanged() -> None:
    z1, z2, turn = unit_rows(6, 0), unit_rows(6, 1), rotation(0)
    assert float(info_nce(z1 @ turn, z2 @ turn, 0.5)) == pytest.approx(
        float(info_nce(z1, z2, 0.5)), abs=1e-12
    )


def test_gradients() -> None:
    z1, z2 = unit_rows(4, 0).requires_grad_(), unit_rows(4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.5), (z1, z2))
    assert torch.autograd.gradcheck(lambda a, b: orthogonal_equivariance(a, b, 2), (z1, z2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    z1, z2 = unit_rows(8, 0, dtype), unit_rows(8, 1, dtype)
    assert info_nce(z1, z2, 0.5).dtype == torch.float32
    assert float(info_nce(z1, z2, 0.5)) == pytest.approx(slow_info_nce(z1, z2, 0.5), abs=1e-5)
    assert float(orthogonal_equivariance(z1, z2, 2)) == pytest.approx(slow_equivariance(z1, z2, 2), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        info_nce(unit_rows(4, 0), unit_rows(4, 1), temperature)


@pytest.mark.parametrize(
    "pair",
    [
        (torch.ones(4, 3), torch.ones(5, 3)),
        (torch.ones(4), torch.ones(4)),
        (torch.ones(1, 3), torch.ones(1, 3)),
    ],
)
def test_wrong_shapes_are_refused(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        info_nce(*pair, 0.5)
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        orthogonal_equivariance(*pair, 1)


@pytest.mark.parametrize("num_splits", [0, 5, 7, 12])
def test_splits_must_divide_the_batch_and_leave_pairs(num_splits: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        orthogonal_equivariance(unit_rows(12, 0), unit_rows(12, 1), num_splits)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="floating point"):
        info_nce(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64), 0.5)
