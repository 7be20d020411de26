"""Lets a language model continue a text, one token at a time."""

import torch
from torch import Tensor, nn

_NUM_TOKENS = 300


def continue_text(network: nn.Module, prompt: Tensor, seed: int, num_tokens: int = _NUM_TOKENS) -> list[int]:
    """Draw tokens from the network's predictions.

    Draws from a generator of its own, so that no other random number changes.

    Args:
        network: maps tokens (1, T), int64, to logits (1, T, vocab_size), in evaluation mode.
        prompt: the tokens to continue, (T,). The network always sees T tokens, because it may accept no others.
        seed: determines the result.
        num_tokens: number of tokens to draw.

    Returns:
        The drawn tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = prompt.unsqueeze(0)
    drawn = []
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = network.forward(tokens)[0, -1]  # not network(tokens): a compiled one would be compiled again
            token = torch.multinomial(logits.float().softmax(0).cpu(), 1, generator=generator)
            drawn.append(int(token))
            tokens = torch.cat([tokens[:, 1:], token.view(1, 1).to(tokens.device)], 1)
    return drawn
