"""Turns batches of pixels into network input: normalization, and random flips and rotations for training."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Normalize:
    """Converts pixels to float32: (pixel / 255 - mean) / std, in one multiplication and one addition.

    Args:
        mean, std: mean and standard deviation of each channel, for pixels scaled to [0, 1]; a single number applies to
            all channels.
        device: where the batches are placed.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        mean_, std_ = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.device = device
        self.scale = (1 / (255 * std_)).float().view(-1, 1, 1).to(device)
        self.shift = (-mean_ / std_).float().view(-1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W), uint8 or float32 in [0, 255], to float32. A float32 tensor is changed in place."""
        return images.to(torch.float32).mul_(self.scale).add_(self.shift)


class FlipAndRotate:
    """Mirror half of the images left to right and rotate each by a uniform random angle in [-degrees, degrees].

    Pixels from outside of the image are black. Interpolation is bilinear.

    Args:
        horizontal_flip: whether to mirror images.
        degrees: the largest angle; 0: no rotation.
    """

    def __init__(self, horizontal_flip: bool, degrees: float) -> None:
        self.horizontal_flip = horizontal_flip
        self.degrees = degrees

    def __bool__(self) -> bool:
        return self.horizontal_flip or self.degrees > 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw two random numbers in [0, 1) per image, one for mirroring and one for the angle: float32 (count, 2).

        One call draws them for a whole epoch, so that the result does not depend on how images are grouped.
        """
        return torch.rand(count, 2, generator=generator, device=generator.device)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Mirror and rotate images.

        Args:
            images: uint8 or float32, (B, C, H, W).
            drawn: the rows of `draw` for these images, (B, 2).

        Returns:
            Images (B, C, H, W): float32 if they are rotated, otherwise of the same dtype.
        """
        height, width = images.shape[2:]
        if self.horizontal_flip:
            mirrored = drawn[:, 0].view(-1, 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        if not self.degrees:
            return images
        angle = ((2 * drawn[:, 1] - 1) * math.radians(self.degrees)).view(-1, 1, 1)
        cos, sin = angle.cos(), angle.sin()
        x, y = _centers(width, images.device), _centers(height, images.device).view(-1, 1)
        # x is in half widths and y in half heights, so the sines contain the aspect ratio. Not affine_grid, because it
        # multiplies small matrices, which takes six times as long.
        grid = torch.stack((cos * x - sin * (height / width) * y, sin * (width / height) * x + cos * y), dim=3)
        return F.grid_sample(images.to(torch.float32), grid, mode="bilinear", align_corners=False)


def _centers(count: int, device: torch.device) -> Tensor:
    """The centers of the pixels along a side, in coordinates from -1 to 1: (count,)."""
    return (2 * torch.arange(count, device=device) + 1) / count - 1
