"""Networks of torchvision and timm by name: adapted to the data, scaled images, refusals."""

import sys

import pytest
import torch
from torch import nn
from torchvision import models

from laptime.errors import UserError
from laptime.models.timm import Timm
from laptime.models.torchvision import Torchvision

pytestmark = pytest.mark.unit

MNIST = (1, 28, 28)


def meta(kind, shape, name, image_size=None, num_classes=10):
    with torch.device("meta"):
        return kind(shape, num_classes, name, image_size)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_only_the_first_layer_and_the_head_differ_from_torchvision(channels):
    with torch.device("meta"):
        network = Torchvision((channels, 28, 28), 7, "mobilenet_v3_small", None).network
        original = models.mobilenet_v3_small().state_dict()
    different = [name for name, weight in network.state_dict().items() if weight.shape != original[name].shape]
    head = ["classifier.3.weight", "classifier.3.bias"]
    assert different == (head if channels == 3 else ["features.0.0.weight", *head])
    assert (network.features[0][0].in_channels, network.classifier[3].out_features) == (channels, 7)


@pytest.mark.parametrize(
    ("name", "image_size", "enough"),
    [
        ("alexnet", None, 63),
        ("vgg11", None, 32),
        ("convnext_tiny", None, 32),
        ("inception_v3", 74, 75),
        ("vit_b_16", None, 32),
        ("maxvit_t", 100, 224),
    ],
)
def test_too_small_images_are_refused_and_the_suggested_size_works(name, image_size, enough):
    sides = "28 x 28" if image_size is None else f"{image_size} x {image_size}"
    with pytest.raises(ValueError, match=rf"^name={name}: doesn't support images of {sides} \(.*model\.image_size=224"):
        meta(Torchvision, MNIST, name, image_size)
    network = meta(Torchvision, MNIST, name, enough)
    assert network(torch.zeros(2, *MNIST, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ["googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_x_400mf", "swin_t"])
def test_other_families_support_the_size_of_mnist(name):
    network = Torchvision(MNIST, 10, name, None)
    logits = network(torch.rand(2, *MNIST))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_images_are_scaled_to_the_size_of_the_network():
    torch.manual_seed(0)
    network, images = Torchvision(MNIST, 10, "shufflenet_v2_x0_5", 56).eval(), torch.rand(2, *MNIST)
    scaled = nn.functional.interpolate(images, size=(56, 56), mode="bilinear")
    torch.testing.assert_close(network(images), network.network(scaled))


@pytest.mark.parametrize("kind", [Torchvision, Timm])
def test_an_unknown_name_is_refused_with_similar_names(kind):
    with pytest.raises(ValueError, match=r"^name=resnet19: .*resnet18"):
        kind(MNIST, 10, "resnet19", None)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/somewhere"])
def test_timm_downloads_nothing(name):
    with pytest.raises(ValueError, match=r"^name=.*must be a classification network of timm"):
        Timm(MNIST, 10, name, None)


@pytest.mark.parametrize("kind", [Torchvision, Timm])
def test_an_image_size_of_zero_is_refused(kind):
    with pytest.raises(ValueError, match=r"^image_size=0: must be at least 1"):
        kind(MNIST, 10, "resnet18", 0)


def test_a_transformer_of_timm_gets_the_image_size():
    network = meta(Timm, (3, 32, 32), "vit_tiny_patch16_224", num_classes=5)
    assert network(torch.rand(2, 3, 32, 32, device="meta")).shape == (2, 5)
    with pytest.raises(ValueError, match=r"^name=inception_v4: doesn't support images of 28 x 28"):
        meta(Timm, MNIST, "inception_v4")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'pip install "laptime\[timm\]"'):
        Timm(MNIST, 10, "resnet18", None)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s16_224"])
def test_patches_that_do_not_cover_all_pixels_are_refused(name):
    with pytest.raises(
        ValueError, match=rf"name={name}: doesn't support images of 28 x 28 .*patches of 16 x 16.*image_size="
    ):
        Timm((1, 28, 28), 10, name=name, image_size=None)
    assert Timm((1, 28, 28), 10, name=name, image_size=32)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
