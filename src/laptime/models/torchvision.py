"""Any classification network of torchvision, by name."""

from typing import Any

from torch import nn
from torchvision import models

from laptime.models.by_name import ByName, check_name, sides_for, too_small


class Torchvision(ByName):
    """A network of torchvision.models with random weights, a first layer for the images' channels and a last one for
    the classes. Nothing is downloaded.

    Args:
        input_shape: of one image, (C, H, W).
        num_classes: number of logits.
        name: as `torchvision.models.list_models` has it.
        image_size: pixels a side that images are scaled to; None: as they are.

    Raises:
        ValueError: no such network, or it can't take images of that size.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, name: str, image_size: int | None) -> None:
        sides = sides_for(input_shape, image_size)
        check_name(name, models.list_models(module=models), "torchvision")
        try:
            network = models.get_model(name, weights=None, num_classes=num_classes, **_needs(name, sides))
        except (ValueError, AssertionError) as error:
            raise too_small(name, sides, error) from error
        _adapt_first_layer(network, input_shape[0])
        super().__init__(network, f"torchvision {name}", sides, input_shape)


def _needs(name: str, sides: tuple[int, int]) -> dict[str, Any]:
    """Arguments that some networks need besides."""
    if name.startswith("vit_"):
        if sides[0] != sides[1]:
            raise ValueError("its images are square")
        return {"image_size": sides[0]}
    if name.startswith("maxvit"):
        return {"input_size": sides}
    if name in ("googlenet", "inception_v3"):  # in training they would give the logits of other layers, too
        return {"aux_logits": False, "init_weights": True}
    return {}


def _adapt_first_layer(network: nn.Module, channels: int) -> None:
    """Put a convolution for so many channels in the place of the first one, which is for three."""
    name, first = next((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d))
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
