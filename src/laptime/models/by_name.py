"""What the networks of a library have in common, each of which is chosen by its name."""

import difflib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laptime.errors import first_line
from laptime.models.parts import channels_last


class ByName(nn.Module):
    """A library's network, to which images are scaled.

    Args:
        network: in training, images (B, C, H, W) to logits (B, num_classes).
        name: of library and network, as the record tells it.
        sides: height and width that images are scaled to.
        input_shape: of one image before that, (C, H, W).

    Raises:
        ValueError: the network can't take images of that size.
    """

    def __init__(
        self, network: nn.Module, name: str, sides: tuple[int, int], input_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self._scaled_to = None if sides == tuple(input_shape[1:]) else sides
        channels = input_shape[0]
        on_meta = {
            key: torch.empty_like(tensor, device="meta")
            for key, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        try:
            # Two: batch norm refuses one image of which one pixel is left.
            torch.func.functional_call(network, on_meta, torch.zeros(2, channels, *sides, device="meta"))
        except NotImplementedError:
            pass  # it can't be tried without data, which training does before it starts
        except Exception as error:
            raise too_small(name, sides, error) from error

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        if self._scaled_to is not None:
            images = F.interpolate(images, size=self._scaled_to, mode="bilinear")
        logits: Tensor = self.network(channels_last(images))
        return logits


def sides_for(input_shape: tuple[int, int, int], image_size: int | None) -> tuple[int, int]:
    """Height and width that the network sees.

    Args:
        input_shape: of one image, (C, H, W).
        image_size: pixels of both sides; None: those of the image.

    Raises:
        ValueError: image_size is below 1.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size}: must be at least 1 pixel, or null for the image's own size.")
    return input_shape[1:] if image_size is None else (image_size, image_size)


def check_name(name: str, known: Sequence[str], library: str) -> None:
    """Check that a library knows a network.

    Raises:
        ValueError: it doesn't; lists those with a name like it.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"Known ones like it: {', '.join(close)}." if close else f"{library} lists {len(known)} of them."
        raise ValueError(f"name={name}: is no classification network of {library}. {hint}")


def too_small(name: str, sides: tuple[int, int], error: Exception) -> ValueError:
    """What to say where a network refuses images of a size."""
    reason = first_line(error).rstrip(".")
    return ValueError(
        f"name={name.split()[-1]}: can't take images of {sides[0]} x {sides[1]} ({reason}). "
        "Have them scaled: model.image_size=224, or as few pixels as it takes."
    )
