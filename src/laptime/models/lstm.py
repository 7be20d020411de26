"""LSTM over the rows of an image."""

from torch import Tensor, nn

from laptime.models.parts import check_dropout


class LSTM(nn.Module):
    """Reads an image row by row from top to bottom, and applies dropout and a linear layer to the last row's output.

    Args:
        input_shape: the shape of one image, (C, H, W): a sequence of H rows with C x W values.
        num_classes: number of logits.
        hidden_size: size of each layer's hidden state.
        num_layers: number of stacked LSTM layers.
        dropout: dropout probability after each layer, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, hidden_size: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        if hidden_size < 1:
            raise ValueError(f"hidden_size={hidden_size}: must be at least 1.")
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: must be at least 1.")
        channels, _, width = input_shape
        between = dropout if num_layers > 1 else 0.0  # torch warns about dropout with a single layer
        self.lstm = nn.LSTM(channels * width, hidden_size, num_layers, batch_first=True, dropout=between)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden_size, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        outputs, _ = self.lstm(rows(images))
        logits: Tensor = self.classifier(outputs[:, -1])
        return logits


def rows(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) as sequences of their rows, (B, H, C x W)."""
    return images.transpose(1, 2).flatten(2)
