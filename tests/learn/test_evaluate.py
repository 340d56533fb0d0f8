"""kNN, probe and gamma_f against slow oracles; an encoder's evaluation on a small dataset."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import build_model
from care_sweep.learn.evaluate import (
    evaluate_encoder,
    extract_features,
    knn_accuracy,
    linear_probe,
    probe_accuracy,
    relative_equivariance,
)
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import apply_views, draw_shared_views, normalise
from care_sweep.spec import TrialConfig

CPU = torch.device("cpu")


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


def slow_probe(features: Tensor, labels: Tensor, num_epochs: int) -> tuple[Tensor, Tensor]:
    """Adam with L2 decay, written out, over one batch an epoch."""
    weight, bias = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (weight, bias)]
    for step in range(1, num_epochs + 1):
        leaves = [p.clone().requires_grad_() for p in (weight, bias)]
        cross_entropy(features @ leaves[0].T + leaves[1], labels).backward()
        for p, leaf, (mean, square) in zip((weight, bias), leaves, moments, strict=True):
            assert leaf.grad is not None
            gradient = leaf.grad + 1e-6 * p
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient.square())
            p.sub_(1e-3 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8))
    return weight, bias


def test_probe_is_adam_written_out() -> None:
    features, labels = clusters(60, 0)
    probe = linear_probe(features.double(), labels, num_classes=4, num_epochs=20, seed=0)
    weight, bias = slow_probe(features.double(), labels, 20)
    assert torch.allclose(probe.weight, weight, atol=1e-10)
    assert torch.allclose(probe.bias, bias, atol=1e-10)


def test_probe_learns_and_repeats() -> None:
    train, test = clusters(1200, 0, 0.5), clusters(100, 1, 0.5)
    probe, again = (linear_probe(*train, num_classes=4, num_epochs=100, seed=3) for _ in range(2))
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


def test_evaluate_encoder(tiny: Dataset, config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = evaluate_encoder(model, tiny, config, device=CPU)
    assert list(metrics) == [
        "validation_knn_accuracy",
        "num_validation_images",
        "validation_probe_accuracy",
        "relative_equivariance",
    ]
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["num_validation_images"] == 20
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert evaluate_encoder(model, tiny, config, device=CPU) == metrics


def test_work_already_done_gives_the_same_measures(tiny: Dataset, config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0)
    features = extract_features(model, tiny, CPU)
    assert evaluate_encoder(model, tiny, config, device=CPU, features=features) == evaluate_encoder(
        model, tiny, config, device=CPU
    )


def test_the_test_split_is_not_read(tiny: Dataset, config: TrialConfig) -> None:
    poisoned = dataclasses.replace(tiny, test=Split(None, None))  # type: ignore[arg-type]
    assert evaluate_encoder(build_model("resnet_tiny", 0), poisoned, config, device=CPU)


def test_gamma_is_the_mean_over_five_augmentations_of_full_strength(
    tiny: Dataset, config: TrialConfig
) -> None:
    model, device = build_model("resnet_tiny", 0).eval(), torch.device("cpu")
    images, source = tiny.validation.images, generator(0, "measure")

    def embed(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return model(normalise(pixels, tiny.mean, tiny.std))

    gammas = []
    for _ in range(5):
        drawn = draw_shared_views(len(images), 1, tiny.image_size, 1.0, source)
        gammas.append(relative_equivariance(embed(images), embed(apply_views(images, drawn))))
    found = evaluate_encoder(model, tiny, config, device=device)["relative_equivariance"]
    assert found == pytest.approx(sum(gammas) / 5, rel=1e-5)
