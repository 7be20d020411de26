"""GPT: a decoder-only transformer for text."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laptime.models.parts import check_dropout

_INITIAL_STD = 0.02


class GPT(nn.Module):
    """Predicts the next token at every place of a sequence, from the tokens up to this place.

    Pre-norm blocks, GELU, learned positions, no biases. The embedding of the tokens is also the last layer's weight.

    Source: A. Radford and others, Language models are unsupervised multitask learners (GPT-2), 2019; sizes and initial
    weights as in A. Karpathy's nanoGPT.

    Args:
        vocab_size: number of different tokens.
        context_length: the longest sequence.
        num_layers: number of blocks.
        num_heads: attention heads per block.
        width: size of a token between the blocks; a multiple of num_heads.
        dropout: dropout probability on the embeddings, in the attention and on the residual branches, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, vocab_size: int, context_length: int, num_layers: int, num_heads: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        for name, value in {"num_layers": num_layers, "num_heads": num_heads}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1.")
        if width < 1 or width % num_heads:
            raise ValueError(f"width={width}: must be a multiple of num_heads={num_heads}.")
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(context_length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, num_heads, dropout) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                is_residual = name.endswith(("project.weight", "contract.weight"))
                nn.init.normal_(weight, std=_INITIAL_STD / math.sqrt(2 * num_layers) if is_residual else _INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T), int64, to logits (B, T, vocab_size). T is at most context_length."""
        embedded = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(self.dropout(embedded))), self.tokens.weight)


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each on a residual branch.

    Args:
        width, num_heads, dropout: the arguments of GPT.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attend = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to (B, T, width)."""
        heads = self.attend(self.attention_norm(x)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, num_heads, T, width / num_heads)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + self.dropout(self.project(attended.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.expand(self.norm(x)))
        out: Tensor = x + self.dropout(self.contract(hidden))
        return out
