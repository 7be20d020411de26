"""Networks that are hard to export, or to evaluate on several ranks."""

from torch import Tensor, nn


class AddsOneToASingleImage(nn.Module):
    """Its output for a single image is not that of the image in a batch. Tracing records only one of the two."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits + 1 if images.shape[0] == 1 else logits


class OneConvolution(nn.Sequential):
    """Has no linear layer to quantize to int8."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, num_classes, 8), nn.Flatten())


class WithBatchNorm(nn.Sequential):
    """Has running statistics, which each rank updates independently."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
