"""The base class of networks from a library, which are chosen by name."""

import difflib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laptime.errors import first_line
from laptime.models.parts import channels_last


class LibraryNetwork(nn.Module):
    """A network from a library, which scales the images to the size that it needs.

    Args:
        network: maps images (B, C, H, W) to logits (B, num_classes); in training mode.
        name: the names of library and network, for the record.
        sides: the height and width to which images are scaled.
        input_shape: the shape of one unscaled image, (C, H, W).

    Raises:
        ValueError: the network doesn't support images of that size.
    """

    def __init__(
        self, network: nn.Module, name: str, sides: tuple[int, int], input_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self._scaled_size = None if sides == tuple(input_shape[1:]) else sides
        channels = input_shape[0]
        meta_tensors = {
            key: torch.empty_like(tensor, device="meta")
            for key, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        try:
            # Two images, because BatchNorm needs more than one value per channel.
            torch.func.functional_call(network, meta_tensors, torch.zeros(2, channels, *sides, device="meta"))
        except NotImplementedError:
            pass  # it can't run on the meta device; training tries a real batch before it starts
        except Exception as error:
            raise unsupported_size(name, sides, error) from error

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        if self._scaled_size is not None:
            images = F.interpolate(images, size=self._scaled_size, mode="bilinear")
        logits: Tensor = self.network(channels_last(images))
        return logits


def sides_for(input_shape: tuple[int, int, int], image_size: int | None) -> tuple[int, int]:
    """Height and width of the network's input.

    Args:
        input_shape: the shape of one image, (C, H, W).
        image_size: pixels per side; None: the size of the image.

    Raises:
        ValueError: image_size is below 1.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size}: must be at least 1 pixel, or null for the image's own size.")
    return input_shape[1:] if image_size is None else (image_size, image_size)


def check_name(name: str, names: Sequence[str], library: str) -> None:
    """Check that a library has a network.

    Raises:
        ValueError: it doesn't. Lists similar names.
    """
    if name not in names:
        similar = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f"Similar names: {', '.join(similar)}." if similar else f"{library} has {len(names)} networks."
        raise ValueError(f"name={name}: must be a classification network of {library}. {hint}")


def unsupported_size(name: str, sides: tuple[int, int], error: Exception) -> ValueError:
    """Return the error for a network that doesn't support images of this size."""
    reason = first_line(error).rstrip(".")
    return ValueError(
        f"name={name.split()[-1]}: doesn't support images of {sides[0]} x {sides[1]} ({reason}). "
        "Scale them, e.g. with model.image_size=224."
    )
