"""Every measure against a slow oracle written from the paper, and what must leave it unchanged."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from care_sweep.learn.measures import (
    NotFiniteError,
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
    wahba_rotation,
)
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import apply_views, hue_change

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def clusters(num_rows: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % 4
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(num_rows, 6, generator=source), labels


def slow_knn(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, num_neighbors: int
) -> float:
    right = 0
    for query, label in zip(queries, query_labels, strict=True):
        similarity = cosine_similarity(query[None], bank).tolist()
        nearest = sorted(range(len(bank)), key=lambda i: -similarity[i])[:num_neighbors]
        votes: dict[int, float] = {}
        for i in nearest:
            vote = math.exp(similarity[i] / 0.5)
            votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0.0) + vote
        right += max(votes, key=lambda c: (votes[c], -c)) == int(label)
    return right / len(queries)


@pytest.mark.parametrize("num_neighbors", [1, 5, 20, 1000])
def test_knn_is_the_loop(num_neighbors: int) -> None:
    bank, queries = clusters(120, 0, 1.5), clusters(600, 1, 1.5)
    ours = knn_accuracy(*bank, *queries, num_neighbors=num_neighbors)
    assert ours == slow_knn(*bank, *queries, num_neighbors)
    assert 0.4 < ours < 1


def test_knn_is_blind_to_the_length_of_features() -> None:
    bank, (queries, labels) = clusters(50, 0), clusters(50, 1)
    assert knn_accuracy(*bank, queries, labels, num_neighbors=3) == knn_accuracy(
        *bank, 1000 * queries, labels, num_neighbors=3
    )


def test_knn_of_a_class_that_the_bank_has_not() -> None:
    bank, (queries, labels) = clusters(40, 0), clusters(8, 1)
    assert knn_accuracy(*bank, queries, labels + 4, num_neighbors=3) == 0


def slow_probe(features: Tensor, labels: Tensor, num_epochs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Adam with L2 decay, written out, over batches of 512 in the order that the seed gives each epoch."""
    weight, bias = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (weight, bias)]
    source, batches = generator(seed, "probe"), []
    for _ in range(num_epochs):
        order = torch.randperm(len(features), generator=source)
        batches += [order[start : start + 512] for start in range(0, len(features), 512)]
    for step, rows in enumerate(batches, 1):
        leaves = [p.clone().requires_grad_() for p in (weight, bias)]
        cross_entropy(features[rows] @ leaves[0].T + leaves[1], labels[rows]).backward()
        for p, leaf, (mean, square) in zip((weight, bias), leaves, moments, strict=True):
            assert leaf.grad is not None
            gradient = leaf.grad + 1e-6 * p
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient.square())
            p.sub_(1e-3 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8))
    return weight, bias


def test_probe_is_adam_written_out() -> None:
    features, labels = clusters(60, 0)
    probe = linear_probes(features.double(), labels, num_classes=4, num_epochs=20, seeds=[0])[0]
    weight, bias = slow_probe(features.double(), labels, 20)
    assert torch.allclose(probe.weight, weight, atol=1e-10)
    assert torch.allclose(probe.bias, bias, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 7])
def test_probe_takes_batches_of_512_in_the_order_of_its_seed(seed: int) -> None:
    features, labels = clusters(1100, 0)
    probe = linear_probes(features.double(), labels, num_classes=4, num_epochs=3, seeds=[seed])[0]
    weight, bias = slow_probe(features.double(), labels, 3, seed)
    assert torch.allclose(probe.weight, weight, atol=1e-12)
    assert torch.allclose(probe.bias, bias, atol=1e-12)
    other, _ = slow_probe(features.double(), labels, 3, seed + 1)
    assert not torch.allclose(weight, other, atol=1e-7), "another seed is another order"


def test_probe_learns_and_repeats() -> None:
    train, test = clusters(1200, 0, 0.5), clusters(100, 1, 0.5)
    probe, again = (linear_probes(*train, num_classes=4, num_epochs=100, seeds=[3])[0] for _ in range(2))
    assert probe_accuracy(probe, *test) > 0.9
    assert torch.equal(probe.weight, again.weight)
    assert not probe.weight.requires_grad


def slow_gamma(f: Tensor, f_a: Tensor) -> float:
    total, pairs = 0.0, 0
    for i in range(len(f)):
        for j in range(len(f)):
            if i != j:
                change = (f_a[j] - f_a[i]).norm() ** 2 - (f[j] - f[i]).norm() ** 2
                moved = (f_a[j] - f[j]).norm() ** 2 + (f_a[i] - f[i]).norm() ** 2
                total += float(change**2 / moved**2)
                pairs += 1
    return total / pairs


def embeddings(num_rows: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, 5, generator=source, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gamma_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    f, f_a = embeddings(30, 0).to(dtype), embeddings(30, 1).to(dtype)
    assert relative_equivariance(f, f_a) == pytest.approx(slow_gamma(f.double(), f_a.double()), rel=tolerance)


def test_gamma_in_chunks_is_the_loop() -> None:
    f = embeddings(600, 0)
    f_a = normalize(f + 0.5 * embeddings(600, 1))
    squared = torch.cdist(f, f).square(), torch.cdist(f_a, f_a).square()
    moved = (f_a - f).square().sum(1)
    ratios = ((squared[1] - squared[0]) / (moved[:, None] + moved)).square()
    expected = float(ratios.fill_diagonal_(0).sum() / (600 * 599))
    assert relative_equivariance(f, f_a) == pytest.approx(expected, rel=1e-9)


def test_gamma_of_a_rotation_and_of_no_change_is_zero() -> None:
    f = embeddings(20, 0)
    turn, _ = torch.linalg.qr(
        torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    assert relative_equivariance(f, f @ turn) < 1e-20
    assert relative_equivariance(f, f.clone()) == 0


@pytest.mark.parametrize("pair", [((4, 3), (5, 3)), ((4,), (4,)), ((1, 3), (1, 3))])
def test_gamma_refuses_wrong_shapes(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, D\)"):
        relative_equivariance(torch.ones(pair[0]), torch.ones(pair[1]))


# --- Wahba --------------------------------------------------------------------------------------------------


def unit_rows(num_rows: int, num_dimensions: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, num_dimensions, generator=source, dtype=torch.float64))


def orthogonal(num_dimensions: int, seed: int, *, determinant: int = 1) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(num_dimensions, num_dimensions, generator=source, dtype=torch.float64))
    q = q * r.diagonal().sign()
    if float(torch.linalg.det(q)) * determinant < 0:
        q[:, 0] *= -1
    return q


def slow_wahba(f: Tensor, f_a: Tensor) -> float:
    """Turn one plane after the other by its best angle: no decomposition, and never a reflection.

    The trace of R^T M has one maximum over SO(d), so climbing it finds the least error.
    """
    turned, d = f.double().clone(), f.shape[1]
    for _ in range(300):
        for i in range(d):
            for j in range(i + 1, d):
                along = float((turned[:, i] * f_a[:, i] + turned[:, j] * f_a[:, j]).sum())
                across = float((turned[:, i] * f_a[:, j] - turned[:, j] * f_a[:, i]).sum())
                angle = math.atan2(across, along)
                x, y = turned[:, i].clone(), turned[:, j].clone()
                turned[:, i] = math.cos(angle) * x - math.sin(angle) * y
                turned[:, j] = math.sin(angle) * x + math.cos(angle) * y
    total = 0.0
    for row, target in zip(turned.tolist(), f_a.double().tolist(), strict=True):
        total += sum((x - y) ** 2 for x, y in zip(row, target, strict=True))
    return math.sqrt(total)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("num_dimensions", [1, 2, 3, 5])
def test_wahba_is_the_least_over_planes(num_dimensions: int, dtype: torch.dtype, tolerance: float) -> None:
    f, f_a = (unit_rows(12, num_dimensions, seed).to(dtype) for seed in (0, 1))
    assert wahba_error(f, f_a) == pytest.approx(slow_wahba(f, f_a), abs=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("num_rows", "num_dimensions"), [(40, 6), (6, 6), (3, 6)])
def test_wahba_recovers_a_planted_rotation(
    num_rows: int, num_dimensions: int, dtype: torch.dtype, tolerance: float
) -> None:
    f, turn = unit_rows(num_rows, num_dimensions, 0), orthogonal(num_dimensions, 1)
    f_a = (f @ turn.T).to(dtype)
    assert wahba_error(f.to(dtype), f_a) < tolerance
    found = wahba_rotation(f.to(dtype), f_a)
    if num_rows >= num_dimensions:
        assert torch.allclose(found, turn, atol=tolerance)
    assert torch.allclose(found @ found.T, torch.eye(num_dimensions, dtype=torch.float64), atol=1e-12)


def test_wahba_excludes_reflections() -> None:
    f, mirror = unit_rows(30, 5, 0), orthogonal(5, 1, determinant=-1)
    f_a = f @ mirror.T
    assert float(torch.linalg.det(wahba_rotation(f, f_a))) == pytest.approx(1, abs=1e-12)
    least = float(torch.linalg.svdvals(f_a.T @ f)[-1])  # a rotation must give up the least singular value
    assert wahba_error(f, f_a) == pytest.approx(2 * math.sqrt(least), rel=1e-12)
    assert relative_equivariance(f, f_a) < 1e-20, "gamma_f takes a reflection for a rotation"


def test_wahba_of_embeddings_in_a_hyperplane_may_reflect_across_it() -> None:
    f = unit_rows(30, 4, 0)
    f = torch.cat([f, torch.zeros(30, 1, dtype=torch.float64)], 1)
    assert wahba_error(f, f * torch.tensor([-1.0, 1, 1, 1, 1], dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_wahba_is_blind_to_rotations_of_either_side_and_to_the_order_of_images(seed: int) -> None:
    f, f_a = unit_rows(25, 6, seed), unit_rows(25, 6, seed + 100)
    expected = wahba_error(f, f_a)
    left, right = orthogonal(6, seed + 200), orthogonal(6, seed + 300)
    mirror = orthogonal(6, seed + 400, determinant=-1)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    assert wahba_error(f @ left, f_a @ right) == pytest.approx(expected, rel=1e-12)
    assert wahba_error(f @ mirror, f_a @ mirror) == pytest.approx(expected, rel=1e-12)
    assert wahba_error(f_a, f) == pytest.approx(expected, rel=1e-12)
    assert wahba_error(f[order], f_a[order]) == pytest.approx(expected, rel=1e-12)
    assert expected <= float((f - f_a).norm())


# --- angles, alignment, uniformity, rank, spread ------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_angles_and_alignment_are_the_loops(dtype: torch.dtype, tolerance: float) -> None:
    f, f_a = unit_rows(20, 4, 0).to(dtype), unit_rows(20, 4, 1).to(dtype)
    cosines, squares = [], []
    for x, y in zip(f.tolist(), f_a.tolist(), strict=True):
        lengths = math.hypot(*x) * math.hypot(*y)
        cosines.append(sum(a * b for a, b in zip(x, y, strict=True)) / lengths)
        squares.append(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
    assert angle_cosines(f, f_a).tolist() == pytest.approx(cosines, abs=tolerance)
    assert alignment(f, f_a) == pytest.approx(sum(squares) / 20, abs=tolerance)
    turn = orthogonal(4, 2)
    assert torch.allclose(angle_cosines(f.double() @ turn, f_a.double() @ turn), angle_cosines(f, f_a))
    assert alignment(f.double() @ turn, f_a.double() @ turn) == pytest.approx(alignment(f, f_a), rel=1e-12)
    assert alignment(f, f) == 0
    assert alignment(f, -f) == pytest.approx(4, abs=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_uniformity_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    f = unit_rows(30, 4, 0).to(dtype)
    rows, total = f.double().tolist(), 0.0
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            if i != j:
                total += math.exp(-2 * sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
    assert uniformity(f) == pytest.approx(math.log(total / (30 * 29)), abs=tolerance)
    assert uniformity(f.double() @ orthogonal(4, 1)) == pytest.approx(uniformity(f), abs=1e-12)
    assert uniformity(f[:1].expand(5, 4)) == pytest.approx(0, abs=tolerance)
    assert uniformity(f) < 0


def test_uniformity_in_chunks_is_the_whole() -> None:
    f = unit_rows(1100, 4, 0)
    distances = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").square()
    total = (-2 * distances).exp().fill_diagonal_(0).sum()
    assert uniformity(f) == pytest.approx(math.log(float(total) / (1100 * 1099)), abs=1e-12)


def slow_rank(f: Tensor) -> float:
    """Singular values as roots of the eigenvalues of F^T F, found by Jacobi's rotations."""
    gram = f.double().T @ f.double()
    for _ in range(60):
        for i in range(len(gram)):
            for j in range(i + 1, len(gram)):
                angle = 0.5 * math.atan2(2 * float(gram[i, j]), float(gram[j, j] - gram[i, i]))
                turn = torch.eye(len(gram), dtype=torch.float64)
                turn[i, i] = turn[j, j] = math.cos(angle)
                turn[i, j], turn[j, i] = math.sin(angle), -math.sin(angle)
                gram = turn.T @ gram @ turn
    values = [math.sqrt(max(0.0, value)) for value in gram.diagonal().tolist()]
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_effective_rank_is_the_entropy_of_singular_values(dtype: torch.dtype, tolerance: float) -> None:
    f = (unit_rows(25, 5, 0) * torch.tensor([1, 0.7, 0.5, 0.2, 0.1], dtype=torch.float64)).to(dtype)
    assert effective_rank(f) == pytest.approx(slow_rank(f), rel=tolerance)


def test_effective_rank_counts_directions() -> None:
    frame = orthogonal(6, 0)
    for rank in range(1, 7):
        assert effective_rank(frame[:rank].repeat(4, 1)) == pytest.approx(rank, abs=1e-6)
    f = unit_rows(20, 6, 1)
    assert effective_rank(orthogonal(20, 3) @ f @ frame * 7) == pytest.approx(effective_rank(f), rel=1e-12)
    assert effective_rank(torch.zeros(4, 3)) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_spread_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    f = unit_rows(25, 5, 0).to(dtype)
    for dimension, found in enumerate(dimension_spread(f).tolist()):
        column = f[:, dimension].tolist()
        mean = sum(column) / 25
        expected = math.sqrt(sum((value - mean) ** 2 for value in column) / 25)
        assert found == pytest.approx(expected, abs=tolerance)
    total = dimension_spread(f.double() @ orthogonal(5, 1)).square().sum()
    assert float(total) == pytest.approx(float(dimension_spread(f).square().sum()), rel=1e-12)
    assert dimension_spread(f[:1].expand(9, 5)).tolist() == pytest.approx([0.0] * 5, abs=tolerance)


# --- retrieval ----------------------------------------------------------------------------------------------


def test_neighbor_change_is_the_share_of_new_ones() -> None:
    before = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert neighbor_change(before, before.flip(1)) == 0
    assert neighbor_change(before, torch.tensor([[2, 9, 0], [8, 7, 6]])) == pytest.approx(4 / 6)
    assert neighbor_change(before, before + 10) == 1
    source = torch.Generator().manual_seed(0)
    found = [torch.stack([torch.randperm(12, generator=source)[:5] for _ in range(9)]) for _ in range(2)]
    kept = sum(len(set(a) & set(b)) for a, b in zip(found[0].tolist(), found[1].tolist(), strict=True))
    assert neighbor_change(*found) == pytest.approx(1 - kept / 45, abs=1e-12)


def test_mean_colour_hue_of_plain_colours() -> None:
    plain = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [90, 90, 90]])
    images = plain.to(torch.uint8).view(5, 3, 1, 1).expand(5, 3, 4, 4)
    hue = mean_colour_hue(images)
    turns = (hue.angle() / (2 * math.pi) % 1)[:4].tolist()
    assert turns == pytest.approx([0, 1 / 3, 2 / 3, 1 / 6], abs=1e-12)
    assert hue.abs().tolist() == pytest.approx([1, 1, 1, 1, 0], abs=1e-12)
    assert torch.equal(mean_colour_hue(images / 255.0).to(torch.complex64), hue.to(torch.complex64))


def test_mean_colour_hue_is_the_loop_and_turns_with_the_hue() -> None:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for image, found in zip(images, mean_colour_hue(images).tolist(), strict=True):
        total = 0j
        for pixel in image.flatten(1).T.tolist():
            for value, place in zip(pixel, (0, 1, 2), strict=True):
                total += value * complex(math.cos(2 * math.pi * place / 3), math.sin(2 * math.pi * place / 3))
        assert found == pytest.approx(total / 64, abs=1e-12)
    images = images.float()
    shifted = apply_views(images, hue_change(3, 1 / 3, (8, 8)))  # on the grid of primaries both hues agree
    turned = mean_colour_hue(images) * complex(math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3))
    assert torch.allclose(mean_colour_hue(shifted), turned, atol=1e-6)


def test_hue_following_has_a_sign() -> None:
    red, quarter = torch.ones(3, dtype=torch.complex128), 0.25
    turned = red * 1j  # a quarter of the circle
    assert hue_following(red, turned, quarter) == pytest.approx(1)
    assert hue_following(red, turned, -quarter) == pytest.approx(-1)
    assert hue_following(red, turned.conj(), quarter) == pytest.approx(-1)
    assert hue_following(red, turned.conj(), -quarter) == pytest.approx(1)


@pytest.mark.parametrize("shift", [-0.3, -0.1, 0.1, 0.4])
def test_hue_following_is_the_share_of_the_turn(shift: float) -> None:
    source = torch.Generator().manual_seed(0)
    before = torch.randn(9, generator=source, dtype=torch.complex128)
    for share in (0.0, 0.25, 1.0):
        turn = 2 * math.pi * shift * share
        after = before * complex(math.cos(turn), math.sin(turn))
        assert hue_following(before, after, shift) == pytest.approx(share, abs=1e-12)
    around = before * complex(math.cos(1), math.sin(1))
    after = torch.randn(9, generator=source, dtype=torch.complex128)
    turned = after * complex(math.cos(1), math.sin(1))
    assert hue_following(around, turned, shift) == pytest.approx(hue_following(before, after, shift))
    assert math.isnan(hue_following(before * 0, before, shift))


# --- what is refused ----------------------------------------------------------------------------------------

PAIR_MEASURES = (relative_equivariance, wahba_error, wahba_rotation, angle_cosines, alignment)
PAIRS = [((4, 3), (5, 3)), ((4,), (4,)), ((0, 3), (0, 3)), ((4, 0), (4, 0)), ((4, 3), (4, 2))]


@pytest.mark.parametrize("measure", [wahba_error, wahba_rotation, angle_cosines, alignment])
@pytest.mark.parametrize("shapes", PAIRS)
def test_measures_of_pairs_refuse_wrong_shapes(measure: Any, shapes: Any) -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, D\) with 1 image or more, they are \("):
        measure(torch.ones(shapes[0]), torch.ones(shapes[1]))


@pytest.mark.parametrize("measure", [uniformity, effective_rank, dimension_spread])
@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 0), (2, 2, 2)])
def test_measures_of_one_refuse_wrong_shapes(measure: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"shape \(N, D\) with . images? or more, they are \("):
        measure(torch.ones(shape))


def test_retrieval_refuses_wrong_shapes_and_shifts() -> None:
    with pytest.raises(ValueError, match=r"one shape \(Q, K\)"):
        neighbor_change(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"one shape \(Q\)"):
        hue_following(torch.ones(2), torch.ones(3), 0.1)
    for shift in (0.0, 0.6, math.nan):
        with pytest.raises(ValueError, match="the shift must be in"):
            hue_following(torch.ones(2), torch.ones(2), shift)
    with pytest.raises(ValueError, match=r"shape \(N, 3, h, w\)"):
        mean_colour_hue(torch.ones(2, 1, 4, 4))


def _damaged(value: float) -> Tensor:
    f = unit_rows(6, 3, 0)
    f[4, 1] = value
    return f


LABELS = torch.arange(6) % 2
PROBE = torch.nn.Linear(3, 2, dtype=torch.float64)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "measured",
    [
        *(lambda bad, whole, m=m: m(bad, whole) for m in PAIR_MEASURES),
        *(lambda bad, whole, m=m: m(whole, bad) for m in PAIR_MEASURES),
        *(lambda bad, _, m=m: m(bad) for m in (uniformity, effective_rank, dimension_spread)),
        lambda bad, whole: knn_accuracy(bad, LABELS, whole, LABELS, num_neighbors=1),
        lambda bad, whole: knn_accuracy(whole, LABELS, bad, LABELS, num_neighbors=1),
        lambda bad, _: linear_probes(bad, LABELS, num_classes=2, num_epochs=1, seeds=[0])[0],
        lambda bad, _: probe_accuracy(PROBE, bad, LABELS),
        lambda bad, _: mean_colour_hue(bad.view(2, 3, 3, 1)),
        lambda bad, whole: hue_following(bad[:, 1], whole[:, 1], 0.1),
    ],
)
def test_what_is_not_finite_is_refused_by_every_measure(measured: Any, value: float) -> None:
    with pytest.raises(NotFiniteError, match=r"1 of .* values to be measured are not finite"):
        measured(_damaged(value), unit_rows(6, 3, 1))
    measured(unit_rows(6, 3, 0), unit_rows(6, 3, 1))


def test_knn_and_probes_refuse_what_does_not_fit() -> None:
    f, none = unit_rows(6, 3, 0), torch.zeros(0, 3)
    for bank, labels, queries, their_labels, num_neighbors, said in (
        (none, LABELS[:0], f, LABELS, 1, r"the bank must be \(N, F\) with 1 image or more, not \(0, 3\)"),
        (f, LABELS, none, LABELS[:0], 1, "queries must be"),
        (f, LABELS[:5], f, LABELS, 1, r"the bank: 6 images have labels of shape \(5,\)"),
        (f, LABELS, f, LABELS[:5], 1, "queries: 6 images have labels"),
        (f, LABELS, f[:, :2], LABELS, 1, "the bank has 3 features, queries have 2"),
        (f, LABELS, f, LABELS, 0, "num_neighbors must be 1 or more, it is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            knn_accuracy(bank, labels, queries, their_labels, num_neighbors=num_neighbors)
    for features, labels, said in (
        (none, LABELS[:0], "the probe's features must be"),
        (f, LABELS[:5], "6 images have labels"),
        (f, LABELS + 1, "below num_classes 2, they are 1 to 2"),
        (f, LABELS - 1, "below num_classes 2, they are -1 to 0"),
    ):
        with pytest.raises(ValueError, match=said):
            linear_probes(features, labels, num_classes=2, num_epochs=1, seeds=[0])[0]
    with pytest.raises(ValueError, match="6 images have labels"):
        probe_accuracy(PROBE, f, LABELS[:5])
