"""Are convolutions with fewer multiplications torch's, gradients too, and taken where they should be?"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from training import run, stop_after, trace

from care_sweep.learn import convolutions
from care_sweep.learn.convolutions import Conv3x3, _is_faster, _Winograd, with_fewer_multiplications
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import build_encoder, build_model
from care_sweep.spec import TrialConfig

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    source = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=source).to(dtype)


def with_gradients(
    convolve: Callable[[Tensor, Tensor], Tensor], images: Tensor, weight: Tensor, slope: Tensor
) -> tuple[Tensor, ...]:
    """The outputs, and the gradients of their product with the slope by images and weight."""
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    outputs = convolve(images, weight)
    return outputs.detach(), *torch.autograd.grad(outputs, (images, weight), slope)


def plain(images: Tensor, weight: Tensor) -> Tensor:
    return conv2d(images, weight, padding=1)


def winograd(images: Tensor, weight: Tensor) -> Tensor:
    outputs: Tensor = _Winograd.apply(images, weight)
    return outputs


# --- the numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("size", [(4, 4), (8, 4), (16, 12)])
def test_in_float64_it_is_torchs(
    size: tuple[int, int], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "_TILES_AT_ONCE", 5)  # so that 7 images are not whole chunks of them
    images, slope = (drawn(7, n, *size, dtype=torch.float64).contiguous(memory_format=layout) for n in (5, 3))
    weight = drawn(3, 5, 3, 3, dtype=torch.float64).contiguous(memory_format=layout)
    ours, theirs = (with_gradients(way, images, weight, slope) for way in (winograd, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-12 * other.abs().max()


def test_its_gradients_are_those_of_what_it_computes() -> None:
    images, weight = drawn(2, 3, 4, 8, dtype=torch.float64), drawn(2, 3, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(winograd, (images.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(("num_channels", "side"), [(64, 32), (128, 16), (256, 8), (512, 4)])
def test_in_float32_it_rounds_to_2e_6(num_channels: int, side: int, layout: torch.memory_format) -> None:
    """Layers of a ResNet-18 with its first weights: by root mean squares within 2e-6 of what float64 gives
    (seen: 1.4e-6, where torch's own is off by 1.1e-6)."""
    images, slope = (drawn(8, num_channels, side, side).contiguous(memory_format=layout) for _ in range(2))
    weight = drawn(num_channels, num_channels, 3, 3) * (2 / 9 / num_channels) ** 0.5
    case = images.relu(), weight.contiguous(memory_format=layout), slope.flip(0)
    exact = with_gradients(plain, *(one.double() for one in case))
    for found, expected in zip(with_gradients(winograd, *case), exact, strict=True):
        assert (found - expected).norm() < 2e-6 * expected.norm()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("num_images", [1, 4, 7])
def test_threads_share_the_images(num_images: int) -> None:
    images, slope = (
        drawn(num_images, 5, 8, 8, dtype=torch.float64),
        drawn(num_images, 3, 8, 8, dtype=torch.float64),
    )
    weight = drawn(3, 5, 3, 3, dtype=torch.float64)
    ours, again, theirs = (with_gradients(way, images, weight, slope) for way in (winograd, winograd, plain))
    for one, same, other in zip(ours, again, theirs, strict=True):
        assert torch.equal(one, same)
        assert (one - other).abs().max() < 1e-12 * other.abs().max()
    assert torch.get_num_threads() == 3


def test_one_gradient_alone() -> None:
    images, weight = drawn(2, 3, 8, 8), drawn(4, 3, 3, 3)
    for asked in (images, weight):
        both = with_gradients(winograd, images, weight, drawn(2, 4, 8, 8))
        one = asked.detach().clone().requires_grad_()
        outputs = winograd(*(one if given is asked else given for given in (images, weight)))
        (gradient,) = torch.autograd.grad(outputs, one, drawn(2, 4, 8, 8))
        assert torch.equal(gradient, both[1] if asked is images else both[2])


def test_the_same_to_the_bit_each_time() -> None:
    case = drawn(16, 64, 16, 16), drawn(64, 64, 3, 3), drawn(16, 64, 16, 16).flip(0)
    first, again = (with_gradients(winograd, *case) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


# --- in a network -------------------------------------------------------------------------------------------


def test_a_resnet_18_trains_as_of_plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """To float32's rounding, which turns a ReLU here and there: seen were 3e-5 of the outputs and 6e-3 of the
    gradients, and of plain convolutions against float64 2e-5 and 7e-3."""
    ours = build_model("resnet18", 0).train()
    theirs, images, target = copy.deepcopy(ours), drawn(8, 3, 32, 32), drawn(8, 128)
    taken: list[bool] = []

    def noted(*case: Tensor) -> bool:
        taken.append(_is_faster(*case))
        return taken[-1]

    monkeypatch.setattr(convolutions, "_is_faster", noted)
    found = ours(images, 2)
    assert taken == [False, *[True] * 7, *[False] * 6], "8 images are too few at 8x8 pixels and at 4x4"
    monkeypatch.setattr(convolutions, "_is_faster", lambda *_: False)
    expected = theirs(images, 2)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    for outputs in (found, expected):
        (outputs * target).sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert (a.grad - b.grad).norm() < 3e-2 * b.grad.norm(), name


def test_a_trial_of_them_goes_on_to_the_bit(
    config: TrialConfig, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "_LEAST_NUMBERS", 2**62)
    plain_trace = trace(run(config, tiny, tmp_path / "plain"))
    monkeypatch.setattr(convolutions, "_LEAST_NUMBERS", 0)  # or resnet_tiny would need larger batches
    whole = run(config, tiny, tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(config, tiny, tmp_path / "part", then=stop_after(1))
    rest = run(config, tiny, tmp_path / "rest", resume_from=tmp_path / "part" / "state-00001.pt")
    assert trace(rest) == trace(whole)[1:]
    assert rest[-1].checkpoint == whole[-1].checkpoint
    losses, plain_losses = (one[0]["train_loss"] for one in (trace(whole), plain_trace))
    assert trace(whole) != plain_trace, "else what this shows is shown elsewhere"
    assert losses == pytest.approx(plain_losses, rel=1e-5)


def test_parameters_are_those_of_the_network_that_was_given() -> None:
    given, _ = build_encoder("resnet18")
    before = dict(given.named_parameters())
    changed = with_fewer_multiplications(given)
    assert all(one is before[name] for name, one in changed.named_parameters())
    assert list(changed.state_dict()) == list(build_encoder("resnet18")[0].state_dict())
    assert sum(isinstance(module, Conv3x3) for module in changed.modules()) == 14  # the stem is one


def test_what_is_another_convolution_stays() -> None:
    others: list[nn.Module] = [
        nn.Conv2d(64, 64, 3, padding=1, bias=False, stride=2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, bias=False),
        nn.Conv2d(64, 64, 1, bias=False),
        nn.Conv2d(64, 64, 3, padding=1, bias=False, groups=2),
        nn.Conv2d(64, 64, 3, padding=2, bias=False, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, bias=False, padding_mode="reflect"),
    ]
    network = with_fewer_multiplications(nn.Sequential(*others))
    assert list(network.children()) == others


def test_all_but_training_in_float32_is_torchs_own() -> None:
    layer = Conv3x3(64, 64, 3, padding=1, bias=False)
    theirs = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    theirs.load_state_dict(layer.state_dict())
    images = drawn(16, 64, 16, 16)
    assert _is_faster(images, layer.weight)
    assert not torch.equal(layer(images), theirs(images)), "else what follows shows nothing"
    assert torch.equal(layer.eval()(images), theirs(images))
    layer.train()
    for shape in [(16, 64, 16, 18), (1, 64, 16, 16)]:
        assert torch.equal(layer(drawn(*shape)), theirs(drawn(*shape)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(images), theirs(images))
    assert torch.equal(layer.double()(images.double()), theirs.double()(images.double()))
