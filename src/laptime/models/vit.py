"""Vision transformer for small images."""

import math

from torch import Tensor, nn

from laptime.models.transformer import Encoder

# Minimum number of patches along the shorter side, if a divisor allows it: 28 pixels give 4 patches of 7, 224 give 4 of
# 56. With 7 patches, a step on MNIST takes 3 times as long, and the first epochs don't learn more.
MIN_PATCHES = 4


class ViT(nn.Module):
    """A transformer encoder whose tokens are square patches of an image, and a linear layer on the mean of all tokens.

    Source: A. Dosovitskiy and others, An image is worth 16x16 words, 2021; here with the mean instead of a class token.

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
        patch_size: pixels per side of a patch, a divisor of both sides; None: chosen by `patch_size_for`.
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
        patch_size: int | None,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, image_width = input_shape
        divisors = divisors_of_both(height, image_width)
        if patch_size is None:
            patch_size = patch_size_for(height, image_width)
        if patch_size not in divisors:
            raise ValueError(
                f"patch_size={patch_size}: must divide both sides of {height} x {image_width} images. "
                f"Use one of {', '.join(map(str, divisors))}, or null."
            )
        num_patches = (height // patch_size) * (image_width // patch_size)
        encoder = Encoder(num_patches, width, num_layers, num_heads, hidden_size, dropout)
        self.embed = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.encoder = encoder
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.classifier(self.encoder(patches))
        return logits


def patch_size_for(height: int, width: int) -> int:
    """Return the largest patch size that gives at least MIN_PATCHES patches along the shorter side, or 1."""
    fitting = [size for size in divisors_of_both(height, width) if min(height, width) // size >= MIN_PATCHES]
    return max(fitting, default=1)


def divisors_of_both(height: int, width: int) -> list[int]:
    """The common divisors of both sides, in ascending order."""
    common = math.gcd(height, width)
    return [size for size in range(1, common + 1) if common % size == 0]
