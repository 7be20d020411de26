"""Transformer encoder over the rows of an image."""

import torch
from torch import Tensor, nn

from laptime.models.lstm import rows
from laptime.models.parts import check_dropout


class Transformer(nn.Module):
    """A transformer encoder whose tokens are the rows of an image, and a linear layer on the mean of all tokens.

    Source: A. Vaswani and others, Attention is all you need, 2017; here with pre-norm and GELU.

    Args:
        input_shape: the shape of one image, (C, H, W): H tokens of C x W values.
        num_classes: number of logits.
        width: size of a token between the layers; a multiple of num_heads.
        num_layers: number of encoder layers.
        num_heads: attention heads per layer.
        hidden_size: width of each layer's hidden linear layer.
        dropout: dropout probability in the feed-forward layers and on the residual branches, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, num_rows, num_columns = input_shape
        encoder = Encoder(num_rows, width, num_layers, num_heads, hidden_size, dropout)
        self.embed = nn.Linear(channels * num_columns, width)
        self.encoder = encoder
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.encoder(self.embed(rows(images))))
        return logits


class Encoder(nn.Module):
    """Adds learned position embeddings, applies the encoder layers, and returns the mean of the tokens.

    Args:
        num_tokens: length of a sequence.
        width, num_layers, num_heads, hidden_size, dropout: the arguments of Transformer.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, num_tokens: int, width: int, num_layers: int, num_heads: int, hidden_size: int, dropout: float
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        for name, value in {"num_layers": num_layers, "num_heads": num_heads, "hidden_size": hidden_size}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1.")
        if width < 1 or width % num_heads:
            raise ValueError(f"width={width}: must be a multiple of num_heads={num_heads}.")
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        layers = [
            nn.TransformerEncoderLayer(
                width, num_heads, hidden_size, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        ]
        for layer in layers:
            layer.self_attn.dropout = 0.0  # torch's fast attention on a CPU doesn't support it
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, num_tokens, width) to (B, width)."""
        normalized: Tensor = self.norm(self.layers(tokens + self.positions))
        return normalized.mean(1)
