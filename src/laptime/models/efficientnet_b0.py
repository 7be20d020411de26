"""EfficientNet-B0 for small images."""

from torch import Tensor, nn
from torchvision.models import efficientnet_b0

from laptime.models.parts import channels_last, check_dropout


class EfficientNetB0(nn.Module):
    """torchvision's EfficientNet-B0 with stride 1 in the first layer, which keeps twice the pixels per side.

    Source: M. Tan and Q. Le, EfficientNet: rethinking model scaling for convolutional neural networks, 2019.

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
        dropout: dropout probability before the last layer, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    name = "efficientnet_b0"

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, dropout: float) -> None:
        super().__init__()
        check_dropout(dropout)
        network = efficientnet_b0(num_classes=num_classes, dropout=dropout)
        first = nn.Conv2d(input_shape[0], 32, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out")  # like all convolutions of the network
        network.features[0][0] = first
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.network(channels_last(images))
        return logits
