"""Normalization, mirroring and rotation of whole batches, against torchvision's of single images."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional

from laptime.data.augment import FlipAndRotate, Normalize

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def applied(augment, images, seed=0):
    return augment(images, augment.draw(len(images), generator(seed)))


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(1))


def turned(images, angle):
    return functional.rotate(images, angle, transforms.InterpolationMode.BILINEAR)


@pytest.fixture
def force_draws(monkeypatch):
    """force_draws(value): every uniform random number is `value`. 0 mirrors and rotates by -degrees."""

    def force(value):
        monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.full(size, value))

    return force


@pytest.mark.parametrize(
    ("mean", "std"), [((0.1307,), (0.3081,)), ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
)
def test_normalize_agrees_with_torchvision(mean, std):
    images = pixels(4, len(mean), 6, 5)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([usual(image.permute(1, 2, 0).numpy()) for image in images])
    torch.testing.assert_close(Normalize(mean, std, CPU)(images), expected, atol=1e-5, rtol=0)


def test_normalize_does_not_change_uint8_images():
    images = pixels(2, 1, 3, 3)
    before = images.clone()
    Normalize((0.5,), (0.5,), CPU)(images)
    assert torch.equal(images, before)


def test_a_single_number_applies_to_all_channels():
    images = pixels(2, 3, 4, 4)
    single, per_channel = Normalize((0.4,), (0.2,), CPU), Normalize((0.4,) * 3, (0.2,) * 3, CPU)
    assert torch.equal(single(images), per_channel(images))


def test_float_images_are_normalized_like_uint8_ones():
    images = pixels(2, 1, 4, 4)
    normalize = Normalize((0.3,), (0.2,), CPU)
    assert torch.equal(normalize(images.float()), normalize(images))


def test_flip_alone_gives_each_image_or_its_mirror_image():
    images = pixels(64, 3, 4, 5)
    flipped = applied(FlipAndRotate(True, 0.0), images)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()


def test_about_half_of_the_images_are_mirrored():
    images = pixels(1, 1, 2, 3).expand(1000, 1, 2, 3)
    flipped = applied(FlipAndRotate(True, 0.0), images)
    fraction = (flipped != images).flatten(1).any(1).float().mean().item()
    # Six standard deviations of a fair coin thrown 1000 times.
    assert abs(fraction - 0.5) < 6 * 0.5 / 1000**0.5


def test_flip_alone_keeps_uint8():
    assert applied(FlipAndRotate(True, 0.0), pixels(3, 1, 4, 4)).dtype == torch.uint8


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 12), (3, 13, 6)], ids=["square", "wide", "high"])
@pytest.mark.parametrize(("drawn", "angle"), [(0.0, -40.0), (0.25, -20.0), (0.5, 0.0), (0.75, 20.0), (1.0, 40.0)])
def test_rotation_agrees_with_torchvision_in_direction_and_value(drawn, angle, shape, force_draws):
    images = pixels(3, *shape).float()
    force_draws(drawn)
    # Tolerance (of 255) for float32 arithmetic in another order.
    torch.testing.assert_close(applied(FlipAndRotate(False, 40.0), images), turned(images, angle), atol=0.01, rtol=0)


def test_uint8_images_are_rotated_like_float_images():
    images = pixels(4, 1, 6, 6)
    rotate = FlipAndRotate(False, 30.0)
    assert torch.equal(applied(rotate, images), applied(rotate, images.float()))


def test_angles_cover_both_directions_up_to_the_largest():
    # A bright dot right of the center moves by the sine of the angle, up or down.
    images = torch.zeros(500, 1, 65, 65)
    images[:, :, 32, 60] = 255
    rotated = applied(FlipAndRotate(False, 20.0), images)[:, 0]
    rows = (rotated.sum(2) * torch.arange(65)).sum(1) / rotated.sum((1, 2))
    angles = torch.rad2deg(torch.asin(((rows - 32) / 28).clamp(-1, 1)))
    assert angles.min().item() == pytest.approx(-20, abs=1.5)
    assert angles.max().item() == pytest.approx(20, abs=1.5)


def test_pixels_from_outside_are_black(force_draws):
    force_draws(1.0)
    turned_by_45 = applied(FlipAndRotate(False, 45.0), torch.full((2, 1, 9, 9), 255.0))
    assert (turned_by_45[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()


def test_images_are_mirrored_before_they_are_rotated(force_draws):
    images = pixels(3, 1, 8, 8).float()
    force_draws(0.0)
    both = applied(FlipAndRotate(True, 25.0), images)
    torch.testing.assert_close(both, turned(images.flip(3), -25.0), atol=0.01, rtol=0)


def test_the_input_is_not_changed():
    images = pixels(8, 1, 6, 6).float()
    before = images.clone()
    applied(FlipAndRotate(True, 30.0), images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("flip", "degrees"), [(True, 0.0), (False, 0.5), (True, 10.0)])
def test_an_augmentation_that_changes_images_is_truthy(flip, degrees):
    assert FlipAndRotate(flip, degrees)


def test_an_augmentation_without_flip_and_angle_is_falsy_and_changes_nothing():
    nothing = FlipAndRotate(False, 0.0)
    images = pixels(5, 3, 4, 6)
    assert not nothing
    assert torch.equal(applied(nothing, images), images)


@pytest.mark.parametrize(("flip", "degrees"), [(True, 0.0), (False, 30.0), (True, 30.0)])
def test_the_result_depends_on_the_generator_only(flip, degrees):
    images, augment = pixels(32, 1, 6, 6), FlipAndRotate(flip, degrees)
    first = applied(augment, images, 5)
    torch.manual_seed(99)
    assert torch.equal(applied(augment, images, 5), first)
    assert not torch.equal(applied(augment, images, 6), first)
