"""LSTM, transformer and vision transformer: which parts of an image they use, and their arguments."""

import pytest
import torch

from laptime.models.lstm import LSTM, rows
from laptime.models.transformer import Transformer
from laptime.models.vit import ViT, patch_size_for

pytestmark = pytest.mark.unit

SHAPE = (2, 8, 12)


def lstm(**changed):
    arguments = {"hidden_size": 4, "num_layers": 2, "dropout": 0.1}
    return LSTM(input_shape=SHAPE, num_classes=3, **arguments | changed)


def transformer(**changed):
    arguments = {"width": 8, "num_layers": 2, "num_heads": 2, "hidden_size": 6, "dropout": 0.1}
    return Transformer(SHAPE, 3, **arguments | changed)


def vit(**changed):
    arguments = {"patch_size": 4, "width": 8, "num_layers": 2, "num_heads": 2, "hidden_size": 6, "dropout": 0.1}
    return ViT(SHAPE, 3, **arguments | changed)


def test_a_row_holds_all_channels_of_its_pixels():
    images = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    assert rows(images).shape == (2, 3, 8)
    assert rows(images)[1, 2].tolist() == [*images[1, 0, 2].tolist(), *images[1, 1, 2].tolist()]


@pytest.mark.parametrize("make", [lstm, transformer, vit])
def test_every_pixel_affects_the_logits(make):
    torch.manual_seed(0)
    images = torch.rand(1, *SHAPE, requires_grad=True)
    make(dropout=0.0)(images).square().sum().backward()
    assert (images.grad != 0).all()


@pytest.mark.parametrize("make", [lstm, transformer, vit])
def test_the_order_of_rows_affects_the_logits(make):
    torch.manual_seed(0)
    network, images = make(dropout=0.0), torch.rand(1, *SHAPE)
    assert not torch.allclose(network(images), network(images.flip(2)), atol=1e-4)


@pytest.mark.parametrize("make", [lstm, transformer, vit])
def test_dropout_acts_in_training_only(make):
    torch.manual_seed(0)
    network, images = make(dropout=0.5), torch.rand(2, *SHAPE)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("sides", "patch_size"),
    [
        ((28, 28), 7),
        ((32, 32), 8),
        ((64, 64), 16),
        ((224, 224), 56),
        ((28, 56), 7),
        ((4, 8), 1),
        ((3, 3), 1),
        ((29, 29), 1),
    ],
)
def test_the_default_patch_divides_both_sides_and_gives_at_least_four_patches_if_possible(sides, patch_size):
    assert patch_size_for(*sides) == patch_size


def test_the_patch_size_determines_the_number_of_tokens():
    assert vit(patch_size=2).encoder.positions.shape == (24, 8)
    assert vit(patch_size=4).encoder.positions.shape == (6, 8)


@pytest.mark.parametrize(
    ("make", "name", "refused", "accepted"),
    [
        *((make, "dropout", *pair) for make in (lstm, transformer, vit) for pair in ((-0.01, 0), (1.0, 0.99))),
        (lstm, "hidden_size", 0, 1),
        (lstm, "num_layers", 0, 1),
        *((make, name, 0, 1) for make in (transformer, vit) for name in ("num_layers", "num_heads", "hidden_size")),
        *((make, "width", *pair) for make in (transformer, vit) for pair in ((7, 6), (0, 2))),
        (vit, "patch_size", 3, 2),
        (vit, "patch_size", 0, 1),
        (vit, "patch_size", 8, None),
    ],
)
def test_argument_out_of_range_is_refused_and_one_within_it_is_accepted(make, name, refused, accepted):
    make(**{name: accepted})
    with pytest.raises(ValueError, match=rf"^{name}={refused}: must "):
        make(**{name: refused})
