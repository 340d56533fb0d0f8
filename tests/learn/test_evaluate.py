"""An encoder's evaluation on a small dataset: what is measured, and what is not touched."""

import dataclasses
import math
import statistics
import weakref
from typing import Any

import pytest
import torch

from care_sweep.learn import evaluate
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.evaluate import (
    Features,
    Retrieval,
    Structure,
    embed,
    embedding_metrics,
    embedding_metrics_of_batches,
    encode,
    evaluate_encoder,
    extract_features,
    fit_probes,
    knn_metrics,
    measure_retrieval,
    measure_structure,
)
from care_sweep.learn.measures import (
    dimension_spread,
    effective_rank,
    knn_accuracy,
    linear_probes,
    probe_accuracy,
    relative_equivariance,
    uniformity,
    wahba_error,
)
from care_sweep.learn.randomness import generator
from care_sweep.learn.views import apply_views, draw_shared_views, hue_change, normalise
from care_sweep.spec import TrialConfig

CPU = torch.device("cpu")


def test_evaluate_encoder(tiny: Dataset, config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = evaluate_encoder(model, tiny, config, device=CPU)
    assert list(metrics) == [
        "validation_knn_accuracy",
        "num_validation_images",
        "validation_probe_accuracy",
        "validation_probe_accuracy_mean",
        "validation_probe_accuracy_spread",
        "relative_equivariance",
        "wahba_error",
        "wahba_error_rms",
        "angle_variance",
        "angle_variance_over_images",
        "alignment",
        "neighbor_change",
        "hue_following",
        "uniformity",
        "effective_rank",
        "embedding_spread",
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


def test_gamma_is_the_mean_over_twenty_augmentations_of_full_strength(
    tiny: Dataset, config: TrialConfig
) -> None:
    model, device = build_model("resnet_tiny", 0).eval(), torch.device("cpu")
    images, source = tiny.validation.images, generator(0, "measure")

    def embedded(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(normalise(pixels, tiny.mean, tiny.std))

    gammas = []
    for _ in range(20):
        drawn = draw_shared_views(len(images), 1, tiny.image_size, 1.0, source)
        gammas.append(relative_equivariance(embedded(images), embedded(apply_views(images, drawn))))
    found = evaluate_encoder(model, tiny, config, device=device)["relative_equivariance"]
    assert found == pytest.approx(sum(gammas) / 20, rel=1e-5)


def test_probe_mean_and_spread_are_over_three_seeds(tiny: Dataset, config: TrialConfig) -> None:
    model = build_model("resnet_tiny", 0)
    features = extract_features(model, tiny, CPU)
    config = config.model_copy(update={"seed": 4})
    probes = fit_probes(features, tiny, config)
    alone = [
        linear_probes(features.train, features.train_labels, num_classes=10, num_epochs=2, seeds=[seed])[0]
        for seed in (4, 5, 6)
    ]
    for probe, other in zip(probes, alone, strict=True):
        assert torch.allclose(probe.weight, other.weight, atol=1e-6)
    assert not torch.equal(probes[0].weight, probes[1].weight)
    accuracies = [probe_accuracy(probe, features.validation, features.validation_labels) for probe in probes]
    metrics = evaluate_encoder(model, tiny, config, device=CPU)
    assert metrics["validation_probe_accuracy"] == accuracies[0]
    assert metrics["validation_probe_accuracy_mean"] == statistics.fmean(accuracies)
    assert metrics["validation_probe_accuracy_spread"] == statistics.stdev(accuracies)


def test_structure_is_of_the_drawn_augmentations(tiny: Dataset) -> None:
    model = build_model("resnet_tiny", 0)
    found = measure_structure(model, tiny, CPU, num_augmentations=2)
    source, images = generator(0, "measure"), tiny.validation.images
    before = embed(model, images, tiny, CPU)
    for number in range(2):
        views = apply_views(images, draw_shared_views(len(images), 1, (32, 32), 1.0, source))
        after = embed(model, views, tiny, CPU)
        assert found.relative_equivariance[number] == relative_equivariance(before, after)
        assert found.wahba_error[number] == wahba_error(before, after)
        assert torch.allclose(found.cosines[number], (before * after).sum(1).double(), atol=1e-6)
    metrics = found.metrics()
    assert metrics["wahba_error_rms"] == metrics["wahba_error"] / math.sqrt(len(images))
    assert metrics["angle_variance"] >= metrics["angle_variance_over_images"] > 0


def test_embeddings_are_of_length_one_and_of_one_collapsed_encoder_too(tiny: Dataset) -> None:
    model = build_model("resnet_tiny", 0)
    assert torch.allclose(embed(model, tiny.validation.images, tiny, CPU).norm(dim=1), torch.ones(20))
    last = model.projector[-1]
    torch.nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    collapsed = embedding_metrics(model, extract_features(model, tiny, CPU))
    assert collapsed["embedding_spread"] < 1e-6
    assert abs(collapsed["effective_rank"] - 1) < 1e-6
    assert abs(collapsed["uniformity"]) < 1e-6


def test_retrieval_finds_the_nearest_embeddings(tiny: Dataset) -> None:
    model = build_model("resnet_tiny", 0)
    found = measure_retrieval(model, tiny, CPU, shifts=(0.2,), num_neighbors=4)
    bank = embed(model, tiny.train.images, tiny, CPU)
    recoloured = apply_views(tiny.validation.images, hue_change(20, 0.2, (32, 32)))
    for images, rows in ((tiny.validation.images, found.before), (recoloured, found.after[0])):
        similar = embed(model, images, tiny, CPU) @ bank.T
        best = similar.sort(dim=1, descending=True).values[:, :4]
        assert torch.allclose(similar.gather(1, rows), best, atol=1e-6)
    assert 0 < found.change[0] <= 1


def test_an_encoder_of_mean_colours_follows_the_hue(mini: Dataset) -> None:
    """A stand-in that embeds the mean colour retrieves by hue; one that sees gray only never changes."""

    class Colour(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    class Gray(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :1] * 0 + images.amax(1, keepdim=True)

    data = dataclasses.replace(mini, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    colours = CareModel(Colour(), 3)
    colours.projector = torch.nn.Identity()  # type: ignore[assignment]
    sees = measure_retrieval(colours, data, CPU, shifts=(-0.1, 0.1))
    assert min(sees.change) > 0.9
    assert all(0.7 < following < 1.3 for following in sees.following)
    gray = CareModel(torch.nn.Sequential(Gray(), torch.nn.Flatten()), 1024)
    gray.projector = torch.nn.Identity()  # type: ignore[assignment]
    blind = measure_retrieval(gray, data, CPU, shifts=(-0.1, 0.1))
    assert max(blind.change) < 0.01  # the brightest channel of HSV, its value, is what a change of hue keeps
    assert max(map(abs, blind.following)) < 0.01


# --- one number, by hand ------------------------------------------------------------------------------------


def test_metrics_of_structure_by_hand() -> None:
    cosines = torch.tensor([[0.0, 0.2, 0.4], [0.9, 0.9, 0.6]], dtype=torch.float64)
    found = Structure(cosines, relative_equivariance=(0.1, 0.3), wahba_error=(3.0, 6.0), alignment=(1.0, 2.5))
    assert found.metrics() == pytest.approx(
        {
            "relative_equivariance": 0.2,
            "wahba_error": 4.5,
            "wahba_error_rms": 4.5 / math.sqrt(3),
            "angle_variance": 0.68 / 6,  # the mean is 0.5
            "angle_variance_over_images": (0.08 / 3 + 0.06 / 3) / 2,  # the means are 0.2 and 0.8
            "alignment": 1.75,
        },
        rel=1e-12,
    )


def test_metrics_of_retrieval_by_hand() -> None:
    none = torch.zeros(1, 1, dtype=torch.int64)
    found = Retrieval((-0.1, 0.1), none, (none, none), change=(0.2, 0.6), following=(-0.5, 0.1))
    assert found.metrics() == pytest.approx({"neighbor_change": 0.4, "hue_following": -0.2})
    gray = dataclasses.replace(found, following=(math.nan, 0.1))
    assert gray.metrics().keys() == {"neighbor_change"}


def test_knn_and_probe_are_as_configured(tiny: Dataset, config: TrialConfig) -> None:
    source = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(700, 6, generator=source), torch.randint(10, (700,), generator=source)
    features = Features(rows[:600], labels[:600], rows[600:], labels[600:])
    for num_neighbors, num_epochs, seed in ((3, 1, 0), (40, 5, 8)):
        changes = {"knn_neighbors": num_neighbors, "probe_epochs": num_epochs, "seed": seed}
        config = config.model_copy(update=changes)
        accuracy = knn_accuracy(
            rows[:600], labels[:600], rows[600:], labels[600:], num_neighbors=num_neighbors
        )
        assert knn_metrics(features, config)["validation_knn_accuracy"] == accuracy
        seeds = range(seed, seed + 3)
        probes = linear_probes(rows[:600], labels[:600], num_classes=10, num_epochs=num_epochs, seeds=seeds)
        for found, probe in zip(fit_probes(features, tiny, config), probes, strict=True):
            assert torch.equal(found.weight, probe.weight)


# --- what it costs ------------------------------------------------------------------------------------------


def test_one_chunk_of_pixels_is_alive_at_a_time(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watched(images: torch.Tensor, *statistics: Any) -> torch.Tensor:
        nonlocal most
        pixels = normalise(images, *statistics)
        made.append(weakref.ref(pixels))
        most = max(most, sum(one() is not None for one in made))
        return pixels

    monkeypatch.setattr(evaluate, "_CHUNK", 8)
    monkeypatch.setattr(evaluate, "normalise", watched)
    encode(build_model("resnet_tiny", 0), tiny.train.images, tiny, CPU)
    assert len(made) == 13
    assert most == 1


@pytest.mark.parametrize(("side", "sizes"), [(16, [16, 4]), (32, [16, 4]), (64, [4] * 5), (256, [1] * 20)])
def test_of_larger_images_fewer_are_encoded_at_once(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch, side: int, sizes: list[int]
) -> None:
    encoded = []

    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            encoded.append(len(images))
            return images.mean((2, 3))

    monkeypatch.setattr(evaluate, "_CHUNK", 16)
    images = torch.zeros(20, 3, side, side, dtype=torch.uint8)
    assert encode(CareModel(Mean(), 3), images, tiny, CPU).shape == (20, 3)
    assert encoded == sizes


def test_images_are_encoded_once_and_once_a_change(
    tiny: Dataset, config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def counted(model: CareModel, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        encoded.append(len(images))
        return encode(model, images, *rest)

    monkeypatch.setattr(evaluate, "encode", counted)
    model = build_model("resnet_tiny", 0)
    metrics = evaluate_encoder(model, tiny, config, device=CPU)
    assert encoded == [100, 20] + [20] * 20 + [20] * 2
    features = extract_features(model, tiny, CPU)
    encoded.clear()
    assert evaluate_encoder(model, tiny, config, device=CPU, features=features) == metrics
    assert encoded == [20] * 22
    assert measure_structure(model, tiny, CPU).metrics().items() <= metrics.items()
    assert measure_retrieval(model, tiny, CPU).metrics().items() <= metrics.items()


def test_by_batch_statistics_is_as_training_embeds(tiny: Dataset) -> None:
    model = build_model("resnet_tiny", 0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = embedding_metrics_of_batches(model, tiny, CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    with torch.no_grad():
        z = model.train()(normalise(tiny.validation.images, tiny.mean, tiny.std))
    spread = dimension_spread(z).mean().item() * math.sqrt(128)
    assert found == {
        "uniformity": uniformity(z),
        "effective_rank": effective_rank(z),
        "embedding_spread": spread,
    }


def test_by_batch_statistics_all_classes_are_seen(
    tiny: Dataset, mini: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more images than are read at once every third here, in the order of their classes."""
    by_class = mini.validation.labels.argsort(stable=True)[:60]
    some = Split(mini.validation.images[by_class], mini.validation.labels[by_class])
    thirds = Split(some.images[::3], some.labels[::3])
    assert set(thirds.labels.tolist()) == set(some.labels.tolist()) == {0, 1}
    model = build_model("resnet_tiny", 0)
    expected = embedding_metrics_of_batches(model, dataclasses.replace(tiny, validation=thirds), CPU)
    monkeypatch.setattr(evaluate, "_CHUNK", 20)
    assert embedding_metrics_of_batches(model, dataclasses.replace(tiny, validation=some), CPU) == expected
