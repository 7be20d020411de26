"""ResNet-18 for small images."""

from torch import Tensor, nn
from torchvision.models import resnet18

from laptime.models.parts import channels_last


class ResNet18(nn.Module):
    """torchvision's ResNet-18 with a first layer for small images: 3 x 3 with stride 1, and no pooling after it.

    The original layers, made for 224 pixels per side, would reduce MNIST's 28 x 28 to 7 x 7 before the first block.

    Source: K. He and others, Deep Residual Learning for Image Recognition, 2016, section 4.2.

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        network = resnet18(num_classes=num_classes)
        network.conv1 = nn.Conv2d(input_shape[0], 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # like all others
        network.maxpool = nn.Identity()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.network(channels_last(images))
        return logits
