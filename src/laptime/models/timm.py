"""Any network of timm, PyTorch Image Models, by name."""

from typing import Any

from laptime.extras import require
from laptime.models.by_name import ByName, check_name, sides_for, too_small

# As soon as a configuration is checked.
require("timm")


class Timm(ByName):
    """A network of timm with random weights, a first layer for the images' channels and a last one for the classes.
    Nothing is downloaded.

    Args:
        input_shape: of one image, (C, H, W).
        num_classes: number of logits.
        name: as `timm.list_models` has it.
        image_size: pixels a side that images are scaled to; None: as they are.

    Raises:
        UserError: timm is not installed.
        ValueError: no such network, or it can't take images of that size.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, name: str, image_size: int | None) -> None:
        require("timm")
        import timm

        sides = sides_for(input_shape, image_size)
        # A name of another form, like hf-hub:..., would load code's settings from elsewhere.
        check_name(name, timm.list_models(), "timm")
        settings = timm.get_pretrained_cfg(name)
        needs: dict[str, Any] = {"img_size": sides} if settings is not None and settings.fixed_input_size else {}
        try:
            network = timm.create_model(
                name, pretrained=False, in_chans=input_shape[0], num_classes=num_classes, **needs
            )
        except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
            raise too_small(name, sides, error) from error
        for layer in network.modules():
            if isinstance(layer, timm.layers.PatchEmbed):
                _require_whole_patches(layer, name, sides)
        super().__init__(network, f"timm {name}", sides, input_shape)


def _require_whole_patches(embedding: Any, name: str, sides: tuple[int, int]) -> None:
    """Refuse images of which a network would leave out what makes no whole patch, without a word."""
    patch = embedding.patch_size
    if not embedding.dynamic_img_pad and any(side % size for side, size in zip(sides, patch, strict=True)):
        error = ValueError(f"its patches of {patch[0]} x {patch[1]} would leave some of their pixels out")
        raise too_small(name, sides, error)
