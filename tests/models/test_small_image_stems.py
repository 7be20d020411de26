"""ResNet-18 and EfficientNet-B0: torchvision's networks with other first layers."""

import pytest
import torch
from torchvision import models

from laptime.models.efficientnet_b0 import EfficientNetB0
from laptime.models.resnet18 import ResNet18

pytestmark = pytest.mark.unit


def test_resnet18_keeps_all_pixels_for_its_first_block_and_ends_with_4_x_4_on_mnist():
    network = ResNet18((1, 28, 28), 10).network
    seen = {}
    for name in ("layer1", "layer4"):
        getattr(network, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape[2:]}))
    network(torch.zeros(2, 1, 28, 28))
    assert seen == {"layer1": (28, 28), "layer4": (4, 4)}


@pytest.mark.parametrize(
    ("network", "original", "head"),
    [
        (lambda: ResNet18((3, 32, 32), 1000), models.resnet18, "conv1.weight"),
        (lambda: EfficientNetB0((1, 32, 32), 1000, 0.2), models.efficientnet_b0, "features.0.0.weight"),
    ],
    ids=["resnet18", "efficientnet_b0"],
)
def test_only_the_first_layer_differs_from_torchvision(network, original, head):
    with torch.device("meta"):
        adapted, originals = network().network.state_dict(), original().state_dict()
    assert list(adapted) == list(originals)
    assert [name for name in adapted if adapted[name].shape != originals[name].shape] == [head]


def test_efficientnet_b0_halves_mnist_four_times():
    network = EfficientNetB0((1, 28, 28), 10, 0.2).network
    assert network.features(torch.zeros(2, 1, 28, 28)).shape[2:] == (2, 2)


@pytest.mark.parametrize(("refused", "accepted"), [(-0.01, 0), (1.0, 0.99), (float("nan"), 0.5)])
def test_dropout_out_of_range_is_refused_and_one_within_it_is_accepted(refused, accepted):
    EfficientNetB0((1, 28, 28), 2, accepted)
    with pytest.raises(ValueError, match=r"^dropout="):
        EfficientNetB0((1, 28, 28), 2, refused)
