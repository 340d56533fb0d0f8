"""Encoders: shapes, sizes, seeds, and one batch statistic for each view group."""

import copy

import pytest
import torch
from torch import nn

from care_sweep.learn.encoder import (
    EMBEDDING_DIMENSIONS,
    CareModel,
    EncoderName,
    Stem,
    build_encoder,
    build_model,
)


def images(num_images: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "num_features"), [("resnet_tiny", None), ("resnet18", 512), ("resnet50", 2048)]
)
def test_shapes(name: EncoderName, num_features: int | None) -> None:
    model = build_model(name, 0).eval()
    assert num_features is None or model.num_features == num_features
    with torch.no_grad():
        assert model.encoder(images(2)).shape == (2, model.num_features)
        embeddings = model(images(2))
    assert embeddings.shape == (2, EMBEDDING_DIMENSIONS)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2))


def test_tiny_has_well_under_a_million_parameters() -> None:
    assert sum(p.numel() for p in build_encoder("resnet_tiny")[0].parameters()) < 700_000


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_stem_is_for_small_images(name: EncoderName) -> None:
    encoder, _ = build_encoder(name)
    assert encoder.conv1.weight.shape == (64, 3, 3, 3)
    assert encoder.conv1.stride == (1, 1)
    assert isinstance(encoder.maxpool, nn.Identity)


@pytest.mark.parametrize("size", [64, 96, 224])
def test_the_imagenet_stem_is_torchvisions_own(size: int) -> None:
    from torchvision.models import resnet18

    ours, theirs = build_encoder("resnet18", "imagenet")[0].eval(), resnet18().eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    views = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(views), theirs(views))


def test_the_default_stem_is_for_small_images() -> None:
    assert torch.equal(
        build_model("resnet18", 0).encoder.conv1.weight,
        build_model("resnet18", 0, "cifar").encoder.conv1.weight,
    )
    assert build_model("resnet18", 0, "imagenet").encoder.conv1.weight.shape == (64, 3, 7, 7)


@pytest.mark.parametrize(
    ("name", "stem", "message"),
    [
        ("vgg", "cifar", "use resnet_tiny"),
        ("resnet18", "patch", "use cifar or imagenet"),
        ("resnet_tiny", "imagenet", "resnet_tiny has a stem of its own"),
    ],
)
def test_what_is_no_encoder_is_refused(name: EncoderName, stem: Stem, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name, stem)


def test_the_seed_alone_determines_the_weights() -> None:
    torch.manual_seed(1)
    first = build_model("resnet_tiny", 5).state_dict()
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    again, other = build_model("resnet_tiny", 5).state_dict(), build_model("resnet_tiny", 6).state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projector.0.weight"], other["projector.0.weight"])


def _sequential(model: CareModel, groups: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([model(group) for group in groups])


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18"])
def test_one_forward_by_view_group_equals_four(name: EncoderName) -> None:
    together = build_model(name, 0).double().train()
    apart = copy.deepcopy(together)
    views = images(16, torch.float64)[..., ::2, ::2]
    target = torch.randn(16, EMBEDDING_DIMENSIONS, dtype=torch.float64)
    ours, theirs = together(views, 4), _sequential(apart, views.chunk(4))
    (ours * target).sum().backward()
    (theirs * target).sum().backward()
    assert (ours - theirs).abs().max() < 1e-12
    for (parameter_name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert a.grad is not None, parameter_name
        assert b.grad is not None, parameter_name
        assert (a.grad - b.grad).abs().max() < 1e-12 * max(1, b.grad.abs().max().item()), parameter_name
    for (buffer_name, a), b in zip(together.named_buffers(), apart.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12), buffer_name
    assert together.state_dict()["projector.1.num_batches_tracked"] == 4


def test_joint_statistics_would_differ() -> None:
    model = build_model("resnet_tiny", 0).double().train()
    views = images(16, torch.float64)
    views[8:] *= 3
    assert (model(views, 4) - model(views, 1)).abs().max() > 1e-3


def test_groups_do_not_matter_in_evaluation_mode() -> None:
    model = build_model("resnet_tiny", 0).eval()
    assert torch.equal(model(images(8), 4), model(images(8), 1))


def test_groups_must_be_equal() -> None:
    with pytest.raises(ValueError, match="groups of equal size"):
        build_model("resnet_tiny", 0)(images(6), 4)


def test_the_projector_has_the_published_shape() -> None:
    model = build_model("resnet_tiny", 0)
    first, norm, _, last = model.projector
    assert (first.in_features, first.out_features, first.bias) == (model.num_features, 512, None)
    assert norm.num_features == 512
    assert (last.in_features, last.out_features, last.bias is not None) == (512, 128, True)


def test_groups_last_for_one_call_only() -> None:
    model, whole = build_model("resnet_tiny", 0).train(), build_model("resnet_tiny", 0).train()
    views = images(8)
    model.project(views, 4)
    assert torch.equal(model.encoder(views), whole.encoder(views)), "the encoder alone is given one batch"
    with pytest.raises(RuntimeError):
        model.project(views[:, :1], 4)
    assert torch.equal(model.encoder(views), whole.encoder(views))
