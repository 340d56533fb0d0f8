"""An encoder's evaluation on a small dataset: what is measured, and what is not touched."""

import dataclasses
import math
import statistics

import pytest
import torch

from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.evaluate import (
    embed,
    embedding_metrics,
    evaluate_encoder,
    extract_features,
    fit_probe,
    measure_retrieval,
    measure_structure,
    probe_accuracy,
    relative_equivariance,
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
    probes = [fit_probe(features, tiny, config, seed=seed) for seed in (4, 5, 6)]
    accuracies = [probe_accuracy(probe, features.validation, features.validation_labels) for probe in probes]
    metrics = evaluate_encoder(model, tiny, config.model_copy(update={"seed": 4}), device=CPU)
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
