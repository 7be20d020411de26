"""From pixels to network input, a batch at once: normalisation for all, random flips and rotations for training."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Normalize:
    """Pixels to float32: (pixel / 255 - mean) / std, in one multiplication and one addition.

    Args:
        mean, std: per channel, of pixels scaled to [0, 1]; one number stands for all channels.
        device: where the batches are.

    Attributes:
        device: as given.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        mean_, std_ = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.device = device
        self.scale = (1 / (255 * std_)).float().view(-1, 1, 1).to(device)
        self.shift = (-mean_ / std_).float().view(-1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float32 in 0 to 255, to float32 of the same shape; float32 is changed in place."""
        return images.to(torch.float32).mul_(self.scale).add_(self.shift)


class FlipAndRotate:
    """Mirror half of the images left to right and rotate each by an angle drawn evenly from [-degrees, degrees].

    What is turned in from outside is black, values between pixels are interpolated bilinearly.

    Args:
        horizontal_flip: whether to mirror.
        degrees: largest angle; 0: no rotation.
    """

    def __init__(self, horizontal_flip: bool, degrees: float) -> None:
        self.horizontal_flip = horizontal_flip
        self.degrees = degrees

    def __bool__(self) -> bool:
        return self.horizontal_flip or self.degrees > 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Two random numbers in [0, 1) per image, float32 (count, 2): for the mirror and for the angle.

        Drawn for a whole epoch at once, so that what happens to an image does not depend on how images are grouped.
        """
        return torch.rand(count, 2, generator=generator, device=generator.device)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Mirror and rotate.

        Args:
            images: (B, C, H, W), uint8 or float32.
            drawn: the images' rows of `draw`, (B, 2).

        Returns:
            (B, C, H, W); float32 where something is rotated.
        """
        height, width = images.shape[2:]
        if self.horizontal_flip:
            mirrored = drawn[:, 0].view(-1, 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        if not self.degrees:
            return images
        angle = ((2 * drawn[:, 1] - 1) * math.radians(self.degrees)).view(-1, 1, 1)
        cos, sin = angle.cos(), angle.sin()
        x, y = _centres(width, images.device), _centres(height, images.device).view(-1, 1)
        # x is measured in half widths and y in half heights, so the sines carry the aspect ratio. Written out,
        # because affine_grid multiplies small matrices, which takes six times as long.
        grid = torch.stack((cos * x - sin * (height / width) * y, sin * (width / height) * x + cos * y), dim=3)
        return F.grid_sample(images.to(torch.float32), grid, mode="bilinear", align_corners=False)


def _centres(count: int, device: torch.device) -> Tensor:
    """Where pixels lie along a side, (count,), from -1 at its one end to 1 at the other."""
    return (2 * torch.arange(count, device=device) + 1) / count - 1
