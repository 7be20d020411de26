"""The convolutional network: size, shapes, small images, arguments."""

import pytest
import torch
from torch import nn

from laptime.models.cnn import CNN

pytestmark = pytest.mark.unit


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_default_size_on_cifar10_has_the_documented_parameter_count():
    assert parameter_count(CNN((3, 32, 32), 10, [32, 64, 128], [512, 256], 0.5)) == 1_276_234


def test_default_size_on_mnist_has_the_parameter_count_of_its_layers():
    convolutions = (1 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 128
    linear = (128 * 3 * 3 + 1) * 512 + (512 + 1) * 256 + (256 + 1) * 10
    assert parameter_count(CNN((1, 28, 28), 10, [32, 64, 128], [512, 256], 0.5)) == convolutions + linear


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 1, 1), (3, 5, 7), (2, 1, 9)])
@pytest.mark.parametrize("num_classes", [2, 100])
def test_logits_have_one_row_per_image_and_one_column_per_class(shape, num_classes):
    assert CNN(shape, num_classes, [4, 4, 4], [8], 0.5)(torch.zeros(3, *shape)).shape == (3, num_classes)


@pytest.mark.parametrize(
    ("shape", "poolings"), [((1, 1, 1), 0), ((1, 2, 2), 1), ((1, 5, 7), 2), ((1, 1, 9), 0), ((1, 28, 28), 3)]
)
def test_pooling_stops_when_a_side_has_one_pixel(shape, poolings):
    features = CNN(shape, 2, [2, 2, 2], [], 0.0).features
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in features) == poolings


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 7)])
def test_values_and_gradients_equal_those_of_relu_before_pooling(shape):
    """Also for windows that are all negative, and for windows with several equal maxima."""
    torch.manual_seed(0)
    network = CNN(shape, 10, [4, 8], [16], 0.0)
    images = torch.randint(0, 3, (16, *shape)).float()  # many equal elements
    usual: list[nn.Module] = []
    for layer in network.features:
        usual.insert(len(usual) - 1 if isinstance(layer, nn.ReLU) else len(usual), layer)
    assert [type(layer) for layer in usual[:3]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    gradients = []
    for features in (network.features, nn.Sequential(*usual)):
        network.zero_grad()
        logits = network.classifier(features(images))
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    network, images = CNN((1, 8, 8), 10, [4], [64], 0.5), torch.rand(2, 1, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(("refused", "accepted"), [(-0.01, 0), (1.0, 0.99), (float("nan"), 0.5)])
def test_dropout_out_of_range_is_refused_and_one_within_it_is_accepted(refused, accepted):
    CNN((1, 4, 4), 2, [2], [4], accepted)
    with pytest.raises(ValueError, match=r"^dropout="):
        CNN((1, 4, 4), 2, [2], [4], refused)


def test_convolution_without_channels_is_refused_and_one_channel_accepted():
    CNN((1, 4, 4), 2, [1], [4], 0.0)
    with pytest.raises(ValueError, match=r"^channels=\[0\]"):
        CNN((1, 4, 4), 2, [0], [4], 0.0)


def test_hidden_layer_without_units_is_refused():
    with pytest.raises(ValueError, match=r"^hidden_sizes=\[0\]"):
        CNN((1, 4, 4), 2, [1], [0], 0.0)


def test_the_memory_layout_changes_no_result():
    torch.manual_seed(0)
    network = CNN((3, 32, 32), 10, [8, 16], [20], 0.0)
    images, labels = torch.randn(5, 3, 32, 32), torch.arange(5)
    fast = network(images)
    torch.nn.functional.cross_entropy(fast, labels).backward()
    gradients = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    plain = network.classifier(network.features(images))
    torch.nn.functional.cross_entropy(plain, labels).backward()
    torch.testing.assert_close(fast, plain)
    for fast_gradient, weight in zip(gradients, network.parameters(), strict=True):
        torch.testing.assert_close(fast_gradient, weight.grad)
