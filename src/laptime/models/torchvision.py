"""Any classification network of torchvision by name."""

from typing import Any

from torch import nn
from torchvision import models

from laptime.models.library_network import LibraryNetwork, check_name, sides_for, unsupported_size


class Torchvision(LibraryNetwork):
    """A network of torchvision.models with random weights, adapted to the number of channels and classes. Nothing is
    downloaded.

    Maps images (B, C, H, W) to logits (B, num_classes).

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
        name: one of `torchvision.models.list_models()`.
        image_size: pixels per side to which images are scaled; None: not scaled.

    Raises:
        ValueError: there is no such network, or it doesn't support images of that size.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, name: str, image_size: int | None) -> None:
        sides = sides_for(input_shape, image_size)
        check_name(name, models.list_models(module=models), "torchvision")
        try:
            network = models.get_model(name, weights=None, num_classes=num_classes, **_extra_arguments(name, sides))
        except (ValueError, AssertionError) as error:
            raise unsupported_size(name, sides, error) from error
        _adapt_first_layer(network, input_shape[0])
        super().__init__(network, f"torchvision {name}", sides, input_shape)


def _extra_arguments(name: str, sides: tuple[int, int]) -> dict[str, Any]:
    """Return the additional arguments that some networks need."""
    if name.startswith("vit_"):
        if sides[0] != sides[1]:
            raise ValueError("its images must be square")
        return {"image_size": sides[0]}
    if name.startswith("maxvit"):
        return {"input_size": sides}
    if name in ("googlenet", "inception_v3"):  # otherwise they return further logits in training
        return {"aux_logits": False, "init_weights": True}
    return {}


def _adapt_first_layer(network: nn.Module, channels: int) -> None:
    """Replace the first convolution, which has three input channels, by one with `channels`."""
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == channels:
        return
    adapted = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, adapted)
