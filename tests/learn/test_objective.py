"""The losses against loops written from the paper, and what must leave them unchanged."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import (
    slow_alignment,
    slow_barlow_twins,
    slow_equivariance,
    slow_info_nce,
    slow_queue_info_nce,
    slow_uniformity,
)
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.learn import objective
from care_sweep.learn.objective import (
    alignment,
    barlow_twins,
    info_nce,
    orthogonal_equivariance,
    queue_info_nce,
    uniformity,
)

BOTH = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])


def unit_rows(num_rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, 7, generator=source, dtype=torch.float64)).to(dtype)


def rotation(seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(7, 7, generator=source, dtype=torch.float64))
    return q * r.diagonal().sign()


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


@BOTH
@TEMPERATURES
def test_the_terms_of_info_nce_are_the_loops(
    dtype: torch.dtype, tolerance: float, temperature: float
) -> None:
    z1, z2 = unit_rows(8, 0, dtype), unit_rows(8, 1, dtype)
    aligned, uniform = alignment(z1, z2, temperature), uniformity(z1, z2, temperature)
    assert aligned.dtype == uniform.dtype == dtype
    assert aligned.shape == uniform.shape == ()
    exact = slow_alignment(z1, z2, temperature), slow_uniformity(z1, z2, temperature)
    assert (float(aligned), float(uniform)) == pytest.approx(exact, abs=tolerance, rel=tolerance)


def test_info_nce_is_the_sum_of_its_terms_where_there_are_many_negatives() -> None:
    def gap(num_images: int) -> float:
        z1, z2 = unit_rows(num_images, 0), unit_rows(num_images, 1)
        return float(info_nce(z1, z2, 0.5) - alignment(z1, z2, 0.5) - uniformity(z1, z2, 0.5))

    assert 0 < gap(512) < 0.1 * gap(32)


def test_the_terms_pull_together_and_drive_apart() -> None:
    z1, apart = unit_rows(6, 0), unit_rows(6, 1)
    together = z1[:1].expand(6, -1)
    assert float(alignment(together, together, 0.5)) == pytest.approx(-2)
    assert float(alignment(z1, z1, 0.5)) == pytest.approx(-2), "where the images lie does not matter"
    assert uniformity(z1, apart, 0.5) < uniformity(together, together, 0.5)
    assert float(uniformity(together, together, 0.5)) == pytest.approx(2 + math.log(10))


@BOTH
@TEMPERATURES
@pytest.mark.parametrize("num_keys", [1, 20])
def test_queue_info_nce_is_the_loop(
    dtype: torch.dtype, tolerance: float, temperature: float, num_keys: int
) -> None:
    queries, keys, queue = unit_rows(6, 0, dtype), unit_rows(6, 1, dtype), unit_rows(num_keys, 2, dtype)
    loss = queue_info_nce(queries, keys, queue, temperature)
    assert loss.dtype == dtype
    assert loss.shape == ()
    exact = slow_queue_info_nce(queries, keys, queue, temperature)
    assert float(loss) == pytest.approx(exact, abs=tolerance, rel=tolerance)


@BOTH
@pytest.mark.parametrize("weight", [0.0, 0.0051, 1.0])
def test_barlow_twins_is_the_loop(dtype: torch.dtype, tolerance: float, weight: float) -> None:
    y1, y2 = 3 * unit_rows(9, 0, dtype) + 1, 0.2 * unit_rows(9, 1, dtype) - 2
    loss = barlow_twins(y1, y2, weight)
    assert loss.dtype == dtype
    assert loss.shape == ()
    exact = slow_barlow_twins(y1, y2, weight)
    assert float(loss) == pytest.approx(exact, abs=tolerance, rel=tolerance)


def test_barlow_twins_is_blind_to_shift_and_scale_and_least_for_whitened_twins() -> None:
    y1, y2 = unit_rows(30, 0), unit_rows(30, 1)
    moved = barlow_twins(100 * y1 + 7, 1000 * y2 - 3, 0.0051)
    assert float(moved) == pytest.approx(float(barlow_twins(1e3 * y1, 1e3 * y2, 0.0051)), rel=1e-6)
    white = 1e3 * torch.linalg.qr(y1 - y1.mean(0)).Q
    assert float(barlow_twins(white, white, 1.0)) < 1e-8
    constant = torch.ones_like(y1)
    assert float(barlow_twins(constant, constant, 1.0)) == 7.0, "collapsed, and not NaN"


def test_gradients() -> None:
    z1, z2 = unit_rows(4, 0).requires_grad_(), unit_rows(4, 1).requires_grad_()
    queue = unit_rows(5, 2)
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, b: info_nce(a, b, 0.5),
        lambda a, b: alignment(a, b, 0.5),
        lambda a, b: uniformity(a, b, 0.5),
        lambda a, b: queue_info_nce(a, b, queue, 0.5),
        lambda a, b: barlow_twins(a, b, 0.1),
        lambda a, b: orthogonal_equivariance(a, b, 2),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (z1, z2))


def all_losses(z1: Tensor, z2: Tensor) -> list[Tensor]:
    return [
        info_nce(z1, z2, 0.5),
        alignment(z1, z2, 0.5),
        uniformity(z1, z2, 0.5),
        queue_info_nce(z1, z2, unit_rows(5, 2).to(z1.dtype), 0.5),
        barlow_twins(z1, z2, 0.1),
        orthogonal_equivariance(z1, z2, 2),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    z1, z2 = unit_rows(8, 0, dtype), unit_rows(8, 1, dtype)
    queue = unit_rows(5, 2).to(dtype)
    exact = [
        slow_info_nce(z1, z2, 0.5),
        slow_alignment(z1, z2, 0.5),
        slow_uniformity(z1, z2, 0.5),
        slow_queue_info_nce(z1, z2, queue, 0.5),
        slow_barlow_twins(z1, z2, 0.1),
        slow_equivariance(z1, z2, 2),
    ]
    losses = all_losses(z1, z2)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert [float(loss) for loss in losses] == pytest.approx(exact, abs=1e-5, rel=1e-5)


def test_autocast_does_not_reach_the_losses() -> None:
    z1, z2 = unit_rows(8, 0, torch.float32), unit_rows(8, 1, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (z1 @ z2.T).dtype == torch.bfloat16
        inside = all_losses(z1, z2)
    assert all(torch.equal(a, b) for a, b in zip(inside, all_losses(z1, z2), strict=True))


MASKS = (objective._itself, objective._own_image, objective._positive)


def test_masks_are_made_once_and_serve_training_after_inference() -> None:
    z1, z2 = unit_rows(22, 0).requires_grad_(), unit_rows(22, 1)
    with torch.inference_mode():
        all_losses(z1, z2)
        made = [mask(22, z1.device) for mask in MASKS]
    sum(all_losses(z1, z2)).backward()  # type: ignore[union-attr]
    assert all(mask(22, z1.device) is before for mask, before in zip(MASKS, made, strict=True))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    z1, z2 = unit_rows(4, 0), unit_rows(4, 1)
    for loss in (info_nce, alignment, uniformity):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            loss(z1, z2, temperature)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        queue_info_nce(z1, z2, z1, temperature)


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_the_redundancy_weight_must_not_be_negative(weight: float) -> None:
    with pytest.raises(ValueError, match="redundancy_weight must be 0 or more"):
        barlow_twins(unit_rows(4, 0), unit_rows(4, 1), weight)


@pytest.mark.parametrize("shape", [(0, 7), (5, 6), (7,)])
def test_a_queue_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the queue must be \(K, 7\)"):
        queue_info_nce(unit_rows(4, 0), unit_rows(4, 1), torch.ones(shape, dtype=torch.float64), 0.5)


@pytest.mark.parametrize(
    "pair",
    [
        (torch.ones(4, 3), torch.ones(5, 3)),
        (torch.ones(4), torch.ones(4)),
        (torch.ones(1, 3), torch.ones(1, 3)),
    ],
)
def test_wrong_shapes_are_refused(pair: tuple[Tensor, Tensor]) -> None:
    for loss in (info_nce, alignment, uniformity, barlow_twins):
        with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
            loss(*pair, 0.5)
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        queue_info_nce(*pair, torch.ones(4, 3), 0.5)
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        orthogonal_equivariance(*pair, 1)


@pytest.mark.parametrize("num_splits", [0, 5, 7, 12])
def test_splits_must_divide_the_batch_and_leave_pairs(num_splits: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        orthogonal_equivariance(unit_rows(12, 0), unit_rows(12, 1), num_splits)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="floating point"):
        info_nce(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64), 0.5)


def test_embeddings_of_no_dimensions_are_refused() -> None:
    empty = torch.ones(4, 0)
    for loss in (info_nce, alignment, uniformity, barlow_twins):
        with pytest.raises(ValueError, match="1 dimension or more"):
            loss(empty, empty, 0.5)
    with pytest.raises(ValueError, match="1 dimension or more"):
        orthogonal_equivariance(empty, empty, 2)
    with pytest.raises(ValueError, match="1 dimension or more"):
        queue_info_nce(empty, empty, empty, 0.5)


@pytest.mark.parametrize("temperature", ["0.5", None, True, 1j])
def test_what_is_no_number_is_no_temperature_and_no_weight(temperature: Any) -> None:
    z1, z2 = unit_rows(4, 0), unit_rows(4, 1)
    for loss in (info_nce, alignment, uniformity):
        with pytest.raises(TypeError, match="temperature must be a number, it is"):
            loss(z1, z2, temperature)
    with pytest.raises(TypeError, match="temperature must be a number, it is"):
        queue_info_nce(z1, z2, z1, temperature)
    with pytest.raises(TypeError, match="redundancy_weight must be a number, it is"):
        barlow_twins(z1, z2, temperature)


def test_temperatures_that_would_give_no_number_are_refused() -> None:
    z1, z2 = unit_rows(64, 0, torch.float32), unit_rows(64, 1, torch.float32)
    for temperature in (1e-45, 9e-31, math.inf):
        for loss in (info_nce, alignment, uniformity):
            with pytest.raises(ValueError, match=r"temperature must be above 0 \(1e-30 or more\) and finite"):
                loss(z1, z2, temperature)
    for loss in (info_nce, alignment, uniformity):
        assert loss(z1, z2, 1e-30).isfinite()
    assert queue_info_nce(z1, z2, unit_rows(9, 2, torch.float32), 1e-30).isfinite()


@pytest.mark.parametrize("num_splits", [2.0, "2", None, True, torch.tensor(2)])
def test_splits_are_a_whole_number(num_splits: Any) -> None:
    with pytest.raises(TypeError, match="num_splits must be a whole number, it is"):
        orthogonal_equivariance(unit_rows(4, 0), unit_rows(4, 1), num_splits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_a_queue_of_another_type_is_refused(dtype: torch.dtype) -> None:
    z1, z2 = unit_rows(4, 0, torch.float32), unit_rows(4, 1, torch.float32)
    with pytest.raises(ValueError, match=f"the queue must be of the type of queries .* it is {dtype}"):
        queue_info_nce(z1, z2, torch.ones(5, 7, dtype=dtype), 0.5)


def test_masks_of_many_sizes_are_not_all_kept() -> None:
    first = [mask(2, torch.device("cpu")) for mask in MASKS]
    for num_images in range(2, 20):
        z1, z2 = unit_rows(num_images, 0), unit_rows(num_images, 1)
        info_nce(z1, z2, 0.5)
        uniformity(z1, z2, 0.5)
    for mask, made in zip(MASKS, first, strict=True):
        assert mask(2, torch.device("cpu")) is not made
