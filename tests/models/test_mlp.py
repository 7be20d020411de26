"""The multi-layer perceptron: size, shapes, arguments."""

import pytest
import torch
from torch import nn

from laptime.models.mlp import MLP

pytestmark = pytest.mark.unit


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_without_hidden_layers_it_is_linear():
    assert parameter_count(MLP((1, 4, 5), 3, [], 0.0)) == 20 * 3 + 3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 1, 1), (3, 5, 7)])
@pytest.mark.parametrize("num_classes", [2, 100])
def test_logits_have_one_row_per_image_and_one_column_per_class(shape, num_classes):
    assert MLP(shape, num_classes, [16, 8], 0.5)(torch.zeros(4, *shape)).shape == (4, num_classes)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    network, images = MLP((1, 8, 8), 10, [64], 0.5), torch.rand(2, 1, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_every_hidden_layer_is_followed_by_relu_and_dropout():
    layers = MLP((1, 2, 2), 3, [5, 4], 0.25).layers
    assert [type(layer) for layer in layers] == [
        nn.Flatten,
        *[nn.Linear, nn.ReLU, nn.Dropout] * 2,
        nn.Linear,
    ]
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


@pytest.mark.parametrize(("refused", "accepted"), [(-0.01, 0), (1.0, 0.99), (float("nan"), 0.5)])
def test_dropout_out_of_range_is_refused_and_one_within_it_is_accepted(refused, accepted):
    MLP((1, 2, 2), 2, [4], accepted)
    with pytest.raises(ValueError, match=r"^dropout="):
        MLP((1, 2, 2), 2, [4], refused)


def test_layer_without_units_is_refused_and_one_unit_accepted():
    MLP((1, 2, 2), 2, [4, 1], 0.0)
    with pytest.raises(ValueError, match=r"^hidden_sizes=\[4, 0\]"):
        MLP((1, 2, 2), 2, [4, 0], 0.0)
