"""LSTM over the rows of an image, or over a text."""

from torch import Tensor, nn

from laptime.models.parts import check_dropout


class LSTM(nn.Module):
    """Reads an image row by row from top to bottom, and applies dropout and a linear layer to the last row's output.

    For text, it reads the embedding of each token, and applies dropout and the linear layer to every output.

    Args:
        hidden_size: size of each layer's hidden state.
        num_layers: number of stacked LSTM layers.
        dropout: dropout probability after each layer, in [0, 1).
        input_shape: for images: the shape of one image, (C, H, W), which is a sequence of H rows with C x W values.
        num_classes: for images: number of logits.
        vocab_size: for text: number of different tokens.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        input_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        if hidden_size < 1:
            raise ValueError(f"hidden_size={hidden_size}: must be at least 1.")
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: must be at least 1.")
        self.embed: nn.Embedding | None = None
        if vocab_size is not None:
            self.embed = nn.Embedding(vocab_size, hidden_size)
            input_size, num_logits = hidden_size, vocab_size
        elif input_shape is not None and num_classes is not None:
            input_size, num_logits = input_shape[0] * input_shape[2], num_classes
        else:
            raise ValueError("either input_shape and num_classes or vocab_size must be given.")
        between = dropout if num_layers > 1 else 0.0  # torch warns about dropout with a single layer
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, dropout=between)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden_size, num_logits))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes), or tokens (B, T) to logits (B, T, vocab_size)."""
        if self.embed is None:
            outputs, _ = self.lstm(rows(inputs))
            logits: Tensor = self.classifier(outputs[:, -1])
        else:
            outputs, _ = self.lstm(self.embed(inputs))
            logits = self.classifier(outputs)
        return logits


def rows(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) as sequences of their rows, (B, H, C x W)."""
    return images.transpose(1, 2).flatten(2)
