"""Floating-point operations, compared with counts by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from laptime.lap import flops
from laptime.lap.flops import FlopCounter

pytestmark = pytest.mark.unit


def counted(network: nn.Module, *inputs: Tensor) -> FlopCounter:
    with FlopCounter() as counter:
        out = network(*inputs)
        (out[0] if isinstance(out, tuple) else out).float().sum().backward()
    return counter


class GPT(nn.Module):
    """nanoGPT's architecture, without dropout and biases."""

    def __init__(self, layers: int, heads: int, width: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, bias=False),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "out": nn.Linear(width, width, bias=False),
                    "norm2": nn.LayerNorm(width, bias=False),
                    "up": nn.Linear(width, 4 * width, bias=False),
                    "down": nn.Linear(4 * width, width, bias=False),
                }
            )
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.embedding(ids) + self.places(torch.arange(length))
        for block in self.blocks:
            parts = block["qkv"](block["norm1"](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*parts.unbind(), is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(x.shape))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x))


def test_a_cnn():
    """Each element of a convolution's output takes a product and a sum for each weight of its filter."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)
    )
    first, second, last = 2 * 14 * 14 * 16 * 3 * 9, 2 * 6 * 6 * 32 * 16 * 9, 2 * 32 * 36 * 10
    by_hand = 8 * (2 * first + 3 * second + 3 * last)  # the gradient of the images is not computed
    counter = counted(network, torch.randn(8, 3, 16, 16))
    assert counter.total == pytest.approx(by_hand, rel=0.01) and not counter.unknown


@pytest.mark.parametrize("groups", [2, 8])
def test_a_grouped_convolution(groups):
    counter = counted(nn.Conv2d(8, 8, 3, padding=1, groups=groups), torch.randn(2, 8, 6, 6, requires_grad=True))
    assert counter.total == 3 * 2 * (2 * 6 * 6 * 8 * (8 // groups) * 9) and not counter.unknown


def test_a_gpt_has_6n_and_12lhqt_operations_per_token():
    layers, heads, width, length, vocabulary = 4, 4, 64, 128, 65
    network = GPT(layers, heads, width, length, vocabulary)
    num_parameters = sum(parameter.numel() for parameter in network.parameters()) - network.places.weight.numel()
    by_hand = 6 * num_parameters + 12 * layers * heads * (width // heads) * length
    counter = counted(network, torch.zeros(2, length, dtype=torch.int64))
    assert counter.total / (2 * length) == pytest.approx(by_hand, rel=0.01) and not counter.unknown


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_forward_and_twice_backward(causal, dtype):
    query, key, value = (torch.randn(2, 3, 10, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(query, key, value, is_causal=causal).sum().backward()
    assert counter.total == 3 * 2 * (2 * 2 * 3 * 10 * 10 * 16) and not counter.unknown


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm(layers):
    network = nn.LSTM(12, 20, layers)
    weights = sum(tensor.numel() for name, tensor in network.named_parameters() if "weight" in name)
    counter = counted(network, torch.randn(7, 5, 12))
    assert not counter.unknown
    # Some implementations in torch also compute the gradient of the first layer's inputs.
    assert 7 * 5 * 2 * weights * 3 * 0.85 <= counter.total <= 7 * 5 * 2 * weights * 3


@pytest.mark.parametrize("name", ["_fake_rnn", "_made_up_attention"])
def test_operator_without_a_formula_is_unknown(name):
    library = torch.library.Library("laptime_tests", "FRAGMENT")
    library.define(f"{name}(Tensor x) -> Tensor")
    library.impl(name, lambda x: x + 1, "CPU")
    with FlopCounter() as counter:
        getattr(torch.ops.laptime_tests, name)(torch.ones(2))
    assert counter.unknown == {f"laptime_tests.{name}.default"}


def test_failing_formula_does_not_fail_the_training(monkeypatch):
    def fails(*_, **__):
        raise AssertionError

    monkeypatch.setattr(flops, "_FORMULAS", {**flops._FORMULAS, torch.ops.aten.mm: fails})
    with FlopCounter() as counter:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).sum() == 8
    assert counter.unknown == {"aten.mm.default (AssertionError)"}


def test_small_operators_are_not_counted():
    with FlopCounter() as counter:
        torch.randn(4).exp().sum()
    assert (counter.total, counter.unknown) == (0, set())


@pytest.mark.parametrize("kind", ["cnn", "gpt", "lstm"])
def test_counting_leaves_results_bitwise_equal(kind):
    def step(counts: bool) -> list[Tensor]:
        torch.manual_seed(3)
        if kind == "cnn":
            network: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten())
            x = torch.randn(4, 3, 8, 8)
        elif kind == "gpt":
            network, x = GPT(2, 2, 32, 16, 20), torch.randint(0, 20, (3, 16))
        else:
            network, x = nn.LSTM(6, 9, 2, dropout=0.5), torch.randn(4, 3, 6)
        if counts:
            with FlopCounter():
                out = network(x)
                loss = (out[0] if isinstance(out, tuple) else out).square().mean()
                loss.backward()
        else:
            out = network(x)
            loss = (out[0] if isinstance(out, tuple) else out).square().mean()
            loss.backward()
        grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return [loss.detach(), *grads, *network.buffers(), torch.get_rng_state()]

    for without, with_count in zip(step(False), step(True), strict=True):
        assert torch.equal(without, with_count)


def test_an_exception_within_leaves_no_mode_behind():
    with pytest.raises(RuntimeError), FlopCounter() as counter:
        raise RuntimeError
    before = counter.total
    torch.ones(2, 2) @ torch.ones(2, 2)
    assert counter.total == before


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_by_checkpointing_is_not_counted(reentrant):
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(3, 8, requires_grad=True)
    with FlopCounter() as plain:
        net(x).sum().backward()
    with FlopCounter() as counter:
        checkpoint(net, x, use_reentrant=reentrant).sum().backward()
    assert counter.total == plain.total and not counter.unknown


def test_second_derivative_is_counted():
    weight, x = torch.randn(4, 4, requires_grad=True), torch.randn(3, 4)
    with FlopCounter() as once:
        (grad,) = torch.autograd.grad((x @ weight).pow(2).sum(), weight, create_graph=True)
    with FlopCounter() as both:
        (grad,) = torch.autograd.grad((x @ weight).pow(2).sum(), weight, create_graph=True)
        grad.pow(2).sum().backward()
    assert both.total > once.total > 2 * 3 * 4 * 4


def test_a_nested_tensor_is_unknown():
    parts = [torch.randn(2, 8), torch.randn(5, 8)]
    with FlopCounter() as counter:
        nn.Linear(8, 4)(torch.nested.nested_tensor(parts, layout=torch.jagged))
    assert counter.unknown
