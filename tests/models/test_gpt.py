"""The GPT: its size, its initial weights, and that it doesn't see the future."""

import pytest
import torch

from laptime.lap.flops import count_flops
from laptime.models.gpt import GPT
from laptime.models.lstm import LSTM
from laptime.optimizers.adamw_gpt import adamw_gpt

pytestmark = pytest.mark.unit


def gpt(**changes) -> GPT:
    return GPT(**{"vocab_size": 63, "context_length": 64, "num_layers": 4, "num_heads": 4, "width": 128, "dropout": 0.0,
                  **changes})  # fmt: skip


def test_size_and_flops_are_those_of_nanogpt():
    network = gpt()
    matrices = 4 * 12 * 128**2 + 63 * 128
    assert sum(weight.numel() for weight in network.parameters()) == matrices + 64 * 128 + 9 * 128
    # 6 operations per weight and token, and 12 per layer, width and pair of tokens (nanoGPT's estimate_mfu).
    expected = 64 * (6 * matrices + 12 * 4 * 128 * 64)
    assert count_flops(network, torch.zeros(2, 64, dtype=torch.int64, device="meta")) == expected


def test_initial_weights():
    torch.manual_seed(0)
    network = gpt()
    for name, weight in network.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            is_residual = name.endswith(("project.weight", "contract.weight"))
            assert float(weight.detach().std()) == pytest.approx(0.02 / 8**0.5 if is_residual else 0.02, rel=0.05), name


@pytest.mark.parametrize("make", [gpt, lambda: LSTM(16, 2, 0.0, vocab_size=63)])
def test_a_prediction_depends_on_earlier_tokens_alone(make):
    torch.manual_seed(0)
    network, tokens = make().eval(), torch.randint(63, (2, 20))
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 63
    before, after = network(tokens), network(changed)
    assert before.shape == (2, 20, 63)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_layers": 0}, "num_layers=0"), ({"num_heads": 0}, "num_heads=0"), ({"width": 10}, "width=10"),
     ({"dropout": 1.0}, r"dropout=1\.0")],
)  # fmt: skip
def test_arguments_out_of_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        gpt(**changes)


def test_only_matrices_decay():
    network = gpt(num_layers=1)
    optimizer = adamw_gpt(network.parameters(), 0.001, [0.9, 0.99], 0.1, True)
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert {name: decay[id(weight)] for name, weight in network.named_parameters()} == {
        name: 0.1 if weight.ndim == 2 else 0.0 for name, weight in network.named_parameters()
    }
    with pytest.raises(ValueError, match=r"^betas="):
        adamw_gpt(network.parameters(), 0.001, [0.9], 0.1, True)
