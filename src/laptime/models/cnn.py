"""Convolutional network."""

from collections.abc import Sequence

from torch import Tensor, nn

from laptime.models.parts import channels_last, check_head, head


class CNN(nn.Module):
    """3 x 3 convolutions, each with ReLU and 2 x 2 max pooling, then linear layers with ReLU and dropout.

    There is no pooling once a side has one pixel. ReLU comes after pooling: values and gradients are the same as in the
    usual order, with a quarter of the elements.

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
        channels: output channels of each convolution.
        hidden_sizes: width of each hidden linear layer.
        dropout: dropout probability after each hidden layer, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        channels: Sequence[int],
        hidden_sizes: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        check_head(hidden_sizes, dropout)
        if any(size < 1 for size in channels):
            raise ValueError(f"channels={list(channels)}: every convolution must have at least one channel.")
        depth, height, width = input_shape
        layers: list[nn.Module] = []
        for size in channels:
            layers.append(nn.Conv2d(depth, size, kernel_size=3, padding=1))
            depth = size
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten(), *head(depth * height * width, hidden_sizes, num_classes, dropout))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(channels_last(images)))
        return logits
