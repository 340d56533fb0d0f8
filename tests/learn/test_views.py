"""Views against torchvision's tensor operations for the same parameters, and the drawing of parameters."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from care_sweep.learn.views import (
    Strength,
    ViewParameters,
    apply_views,
    draw_shared_views,
    draw_views,
    hue_change,
    normalise,
)

TOLERANCE = 2e-6


def identity(num_views: int, height: int, width: int) -> ViewParameters:
    zeros = torch.zeros(num_views, dtype=torch.int64)
    off = torch.zeros(num_views, dtype=torch.bool)
    return ViewParameters(
        size=(height, width),
        top=zeros,
        left=zeros,
        height=zeros + height,
        width=zeros + width,
        flip=off,
        jitter=off,
        order=torch.arange(4).repeat(num_views, 1),
        factors=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(num_views, 1),
        grayscale=off,
        blur=off,
        sigma=torch.ones(num_views),
    )


def random_images(num_images: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(num_images, 3, height, width, generator=source)


def torchvision_view(image: Tensor, p: ViewParameters, i: int) -> Tensor:
    """View i, operation by operation."""
    view = tv.resized_crop(
        image,
        *(int(getattr(p, name)[i]) for name in ("top", "left", "height", "width")),
        size=list(image.shape[-2:]),
        antialias=True,
    )
    if p.flip[i]:
        view = tv.horizontal_flip(view)
    if p.jitter[i]:
        operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for number in p.order[i].tolist():
            view = operations[number](view, float(p.factors[i, number]))
    if p.grayscale[i]:
        view = tv.rgb_to_grayscale(view, num_output_channels=3)
    if p.blur[i]:
        view = tv.gaussian_blur(view, [3, 3], [float(p.sigma[i])] * 2)
    return view


def assert_equals_torchvision(images: Tensor, p: ViewParameters) -> None:
    views = apply_views(images, p)
    expected = torch.stack([torchvision_view(image, p, i) for i, image in enumerate(images)])
    assert views.shape == images.shape
    assert (views - expected).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize(
    ("num_images", "size"),
    [(48, (32, 32)), (48, (24, 40)), (48, (40, 24)), (48, (96, 96)), (3, (224, 224)), (2, (160, 224))],
)
def test_whole_pipeline_equals_torchvision(num_images: int, size: tuple[int, int]) -> None:
    p = draw_views(num_images, size, 1.5, torch.Generator().manual_seed(1))
    assert_equals_torchvision(random_images(num_images, *size), p)


def test_whole_pipeline_on_real_images_as_bytes(mini) -> None:  # type: ignore[no-untyped-def]
    images = mini.train.images[:64]
    p = draw_views(64, (32, 32), 1.0, torch.Generator().manual_seed(2))
    expected = torch.stack([torchvision_view(image / 255, p, i) for i, image in enumerate(images)])
    assert (apply_views(images, p) - expected).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize(
    ("number", "factor"),
    [
        *((number, factor) for number in range(3) for factor in (0.0, 0.2, 0.5, 1.0, 1.8)),
        *((3, shift) for shift in (-0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5)),
    ],
)
def test_each_jitter_equals_torchvision(number: int, factor: float) -> None:
    images = random_images(4)
    images[1] = images[1].mean(0)  # without colour: no hue to turn
    images[2, :, :16] = 0
    images[3] = (images[3] * 3).round() / 3  # ties between channels
    p = identity(4, 32, 32)
    factors = p.factors.clone()
    factors[:, number] = factor
    assert_equals_torchvision(images, dataclasses.replace(p, jitter=~p.jitter, factors=factors))


@pytest.mark.parametrize("name", ["flip", "grayscale", "blur"])
def test_each_switch_equals_torchvision(name: str) -> None:
    p = identity(4, 32, 32)
    on = dataclasses.replace(p, **{name: torch.tensor([True, False, True, True])})
    assert_equals_torchvision(random_images(4), on)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_each_blur_equals_torchvision(sigma: float) -> None:
    p = identity(3, 20, 32)
    assert_equals_torchvision(
        random_images(3, 20, 32), dataclasses.replace(p, blur=~p.blur, sigma=torch.full((3,), sigma))
    )


@pytest.mark.parametrize(
    "box", [(0, 0, 32, 32), (3, 5, 1, 1), (0, 31, 32, 1), (7, 2, 13, 20), (31, 0, 1, 17)]
)
def test_each_crop_equals_torchvision(box: tuple[int, int, int, int]) -> None:
    top, left, height, width = (torch.full((2,), number) for number in box)
    p = dataclasses.replace(identity(2, 32, 32), top=top, left=left, height=height, width=width)
    assert_equals_torchvision(random_images(2), p)


def test_double_precision_stays() -> None:
    p = draw_views(8, (32, 32), 1.0, torch.Generator().manual_seed(0))
    assert apply_views(random_images(8).double(), p).dtype == torch.float64


def test_applying_is_pure() -> None:
    images, p = random_images(8), draw_views(8, (32, 32), 2.0, torch.Generator().manual_seed(0))
    before = images.clone()
    first = apply_views(images, p)
    assert torch.equal(images, before)
    assert torch.equal(apply_views(images, p), first)


def test_strength_zero_is_the_identity_and_a_flip() -> None:
    images, p = random_images(64), draw_views(64, (32, 32), 0.0, torch.Generator().manual_seed(0))
    expected = torch.where(p.flip.view(-1, 1, 1, 1), images.flip(3), images)
    assert 0 < p.flip.sum() < 64
    assert torch.equal(apply_views(images, p), expected)


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (32, 40), (24, 40), (60, 20)])
def test_strength_zero_keeps_every_size_whole(size: tuple[int, int]) -> None:
    source, stronger = (torch.Generator().manual_seed(0) for _ in range(2))
    p = draw_views(5000, size, 0.0, source)
    assert (p.height == size[0]).all()
    assert (p.width == size[1]).all()
    assert not p.top.any()
    assert not p.left.any()
    draw_views(5000, size, 1.0, stronger)
    assert torch.equal(source.get_state(), stronger.get_state())
    images = random_images(3, *size)
    assert torch.equal(
        apply_views(images, p[:3]), torch.where(p.flip[:3, None, None, None], images.flip(3), images)
    )


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (0.0, Strength(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        (0.5, Strength(0.54, 0.2, 0.05, 0.8, 0.1, 0.25)),
        (1.0, Strength(0.08, 0.4, 0.1, 0.8, 0.2, 0.5)),
        (2.0, Strength(0.08, 0.8, 0.2, 0.8, 0.4, 1.0)),
    ],
)
def test_strength_mapping(s: float, expected: Strength) -> None:
    assert dataclasses.astuple(Strength.of(s)) == pytest.approx(dataclasses.astuple(expected))


@pytest.mark.parametrize(
    ("s", "least", "lowest"),
    [(0.0, 0.2, 1.0), (0.5, 0.2, 0.6), (1.0, 0.2, 0.2), (2.0, 0.2, 0.2), (1.0, 1.0, 1.0), (0.5, 0.08, 0.54)],
)
def test_the_least_crop_scale_is_reached_at_strength_one(s: float, least: float, lowest: float) -> None:
    amounts = Strength.of(s, least)
    assert amounts.lowest_scale == pytest.approx(lowest)
    assert dataclasses.replace(amounts, lowest_scale=0) == dataclasses.replace(Strength.of(s), lowest_scale=0)


def test_the_least_crop_scale_bounds_the_crops_and_nothing_else() -> None:
    wide, narrow = (torch.Generator().manual_seed(9) for _ in range(2))
    small, large = draw_views(2000, (224, 224), 1.0, narrow), draw_views(2000, (224, 224), 1.0, wide, 0.2)
    shares = [(p.height * p.width / 224**2).min().item() for p in (small, large)]
    assert shares == pytest.approx([0.08, 0.2], abs=0.01)
    assert torch.equal(small.flip, large.flip)
    assert torch.equal(wide.get_state(), narrow.get_state())
    shared = draw_shared_views(2000, 1000, (224, 224), 1.0, torch.Generator().manual_seed(9), 0.2)
    assert (shared.height * shared.width / 224**2).min().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("least", [0.0, -0.1, 1.1, float("nan")])
def test_a_least_crop_scale_outside_its_range_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match="least_crop_scale"):
        Strength.of(1.0, least)


@pytest.mark.parametrize("s", [-0.1, 2.1, float("nan")])
def test_strength_outside_its_range_is_refused(s: float) -> None:
    with pytest.raises(ValueError, match="augmentation_strength"):
        Strength.of(s)


def test_drawn_frequencies_and_ranges() -> None:
    p = draw_views(20_000, (32, 32), 1.0, torch.Generator().manual_seed(3))
    for name, probability in {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.5}.items():
        assert getattr(p, name).double().mean().item() == pytest.approx(probability, abs=0.015)
    assert p.factors[:, :3].min() >= 0.6
    assert p.factors[:, :3].max() <= 1.4
    assert p.factors[:, 3].abs().max() <= 0.1
    assert 0.1 <= p.sigma.min() <= 0.11
    assert 1.99 <= p.sigma.max() <= 2.0
    orders = p.order @ torch.tensor([64, 16, 4, 1])
    assert len(orders.unique()) == 24
    assert (p.order.sort(1).values == torch.arange(4)).all()


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_crops_are_distributed_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    num_draws = 6000
    p = draw_views(num_draws, size, 1.0, torch.Generator().manual_seed(4))
    ours = torch.stack([p.top, p.left, p.height, p.width], 1).double()
    crop = v2.RandomResizedCrop(size, scale=(0.08, 1.0))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        image = torch.zeros(3, *size)
        drawn = [crop.make_params([image]) for _ in range(num_draws)]
    theirs = torch.tensor([[d[key] for key in ("top", "left", "height", "width")] for d in drawn]).double()
    error = theirs.std(0) / num_draws**0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error * 2**0.5).all()
    for column in range(4):
        ours_cdf, theirs_cdf = (
            torch.histc(t[:, column], 60, 0, 60).cumsum(0) / num_draws for t in (ours, theirs)
        )
        assert (ours_cdf - theirs_cdf).abs().max() < 1.95 * (
            2 / num_draws
        ) ** 0.5  # Kolmogorov-Smirnov, 0.1 %


def test_crops_lie_within_the_image() -> None:
    p = draw_views(5000, (20, 60), 1.0, torch.Generator().manual_seed(6))
    assert ((p.top >= 0) & (p.top + p.height <= 20) & (p.height > 0)).all()
    assert ((p.left >= 0) & (p.left + p.width <= 60) & (p.width > 0)).all()


def test_shared_views_are_one_a_split() -> None:
    p = draw_shared_views(12, 3, (32, 32), 1.0, torch.Generator().manual_seed(7))
    once = draw_views(3, (32, 32), 1.0, torch.Generator().manual_seed(7))
    assert len(p) == 12
    assert p.size == (32, 32)
    for field in dataclasses.fields(ViewParameters)[1:]:
        rows, drawn = getattr(p, field.name), getattr(once, field.name)
        for split in range(3):
            assert (rows[4 * split : 4 * split + 4] == drawn[split]).all()


def test_the_strength_does_not_move_the_random_stream() -> None:
    weak, strong = (torch.Generator().manual_seed(8) for _ in range(2))
    assert torch.equal(draw_views(9, (32, 32), 0.1, weak).flip, draw_views(9, (32, 32), 2.0, strong).flip)
    assert torch.equal(weak.get_state(), strong.get_state())


def test_normalise() -> None:
    images = torch.randint(
        0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    expected = tv.normalize(images / 255, mean, std)
    assert torch.allclose(normalise(images, mean, std), expected, atol=1e-6)
    pixels = images / 255
    normalised = normalise(images, mean, std)
    assert torch.equal(normalise(pixels, mean, std), normalised)
    assert normalise(pixels, mean, std, out=pixels) is pixels
    assert torch.equal(pixels, normalised)


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (4, 1, 32, 32), (4, 3, 32)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    p = draw_views(4, (32, 32), 1.0, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="need images of shape"):
        apply_views(torch.zeros(shape), p)


@pytest.mark.parametrize(("num_images", "num_splits"), [(10, 4), (4, 8), (8, 0), (8, -2)])
def test_images_that_cannot_share_equally_are_refused(num_images: int, num_splits: int) -> None:
    with pytest.raises(ValueError, match=f"{num_images} images cannot share {num_splits} augmentations"):
        draw_shared_views(num_images, num_splits, (32, 32), 1.0, torch.Generator())


@pytest.mark.parametrize("drawn", [(32, 32), (48, 32), (64, 64)])
def test_parameters_of_another_size_are_refused(drawn: tuple[int, int]) -> None:
    views = draw_views(4, drawn, 1.0, torch.Generator()), hue_change(4, 0.1, drawn)
    shared = draw_shared_views(4, 2, drawn, 1.0, torch.Generator())
    for p in (*views, shared, shared[:4], views[0][torch.arange(4)]):
        with pytest.raises(ValueError, match=rf"{drawn[0]} x {drawn[1]} pixels, these have 32 x 48"):
            apply_views(torch.zeros(4, 3, 32, 48), p)
