"""Any network of timm (PyTorch Image Models) by name."""

from typing import Any

from laptime.extras import require
from laptime.models.library_network import LibraryNetwork, check_name, sides_for, unsupported_size

# Checked on import, so that checking a configuration names the missing extra.
require("timm")


class Timm(LibraryNetwork):
    """A network of timm with random weights, adapted to the number of channels and classes. Nothing is downloaded.

    Maps images (B, C, H, W) to logits (B, num_classes).

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
        name: one of `timm.list_models()`.
        image_size: pixels per side to which images are scaled; None: not scaled.

    Raises:
        UserError: timm is not installed.
        ValueError: there is no such network, or it doesn't support images of that size.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, name: str, image_size: int | None) -> None:
        require("timm")
        import timm

        sides = sides_for(input_shape, image_size)
        # Other names, e.g. hf-hub:..., would load a configuration from the internet.
        check_name(name, timm.list_models(), "timm")
        settings = timm.get_pretrained_cfg(name)
        size_arguments: dict[str, Any] = (
            {"img_size": sides} if settings is not None and settings.fixed_input_size else {}
        )
        try:
            network = timm.create_model(
                name, pretrained=False, in_chans=input_shape[0], num_classes=num_classes, **size_arguments
            )
        except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
            raise unsupported_size(name, sides, error) from error
        for layer in network.modules():
            if isinstance(layer, timm.layers.PatchEmbed):
                _require_full_coverage(layer, name, sides)
        super().__init__(network, f"timm {name}", sides, input_shape)


def _require_full_coverage(embedding: Any, name: str, sides: tuple[int, int]) -> None:
    """Refuse images whose sides are not multiples of the patch size: the network would silently drop pixels."""
    patch = embedding.patch_size
    if not embedding.dynamic_img_pad and any(side % size for side, size in zip(sides, patch, strict=True)):
        error = ValueError(f"its patches of {patch[0]} x {patch[1]} would not cover all pixels")
        raise unsupported_size(name, sides, error)
