"""The two measures of collapse against loops, and what they say of known clouds of points."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.learn.collapse import dimension_spread, effective_rank

BOTH = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])


def unit_rows(num_rows: int, num_dimensions: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, num_dimensions, generator=source, dtype=torch.float64))


def slow_effective_rank(z: Tensor) -> float:
    """By the eigenvalues of the Gram matrix."""
    sigma = [
        math.sqrt(max(0.0, value)) for value in torch.linalg.eigvalsh(z.double().T @ z.double()).tolist()
    ]
    shares = [value / sum(sigma) + 1e-7 for value in sigma]
    return math.exp(-sum(p * math.log(p) for p in shares))


def slow_spread(z: Tensor) -> float:
    deviations = []
    for column in z.double().T.tolist():
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)))
    return sum(deviations) / len(deviations) * math.sqrt(z.shape[1])


@BOTH
def test_the_measures_are_the_loops(dtype: torch.dtype, tolerance: float) -> None:
    z = unit_rows(40, 6).to(dtype)
    assert effective_rank(z) == pytest.approx(slow_effective_rank(z), rel=tolerance)
    assert dimension_spread(z) == pytest.approx(slow_spread(z), rel=tolerance)


def test_directions_that_carry_alike_are_counted() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-5)
    assert effective_rank(torch.eye(8)[:, :3].repeat(5, 1)) == pytest.approx(3, rel=1e-5)


def test_a_point_has_rank_1_and_no_spread() -> None:
    point = unit_rows(1, 16).expand(20, -1)
    assert effective_rank(point) == pytest.approx(1, abs=1e-3)
    assert dimension_spread(point) == pytest.approx(0, abs=1e-12)
    assert effective_rank(torch.zeros(4, 3)) == 1


def test_a_line_through_the_origin_has_rank_1_and_spreads() -> None:
    ends = torch.tensor([[1.0, 0, 0], [-1, 0, 0]]).repeat(5, 1)
    assert effective_rank(ends) == pytest.approx(1, abs=1e-3)
    assert dimension_spread(ends) == pytest.approx(math.sqrt(3) / 3)


def test_the_uniform_sphere_spreads_by_1() -> None:
    assert dimension_spread(unit_rows(4000, 32)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_rotations_leave_the_rank_and_scale_does_too(seed: int) -> None:
    z = unit_rows(30, 6) * torch.tensor([3, 2, 1, 1, 0.5, 0.1], dtype=torch.float64)
    turn = torch.linalg.qr(unit_rows(6, 6, seed)).Q
    assert effective_rank(5 * z @ turn) == pytest.approx(effective_rank(z), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 3, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for measure in (effective_rank, dimension_spread):
        with pytest.raises(ValueError, match=r"must be \(N, D\) with 2 images or more"):
            measure(torch.ones(shape))
