"""Data sets that are never loaded, for tests of what needs only their sizes."""

from laptime.data.synthetic import Synthetic


def images(shape: tuple[int, int, int], num_classes: int = 3) -> Synthetic:
    """Generated images of a shape (C, H, W)."""
    return Synthetic(
        root=None, verify=True, val_fraction=0.2, limit=None, pipeline="memory", num_workers=0, horizontal_flip=False,
        rotation_degrees=0.0, shape=list(shape), num_classes=num_classes, num_train=8, num_test=8,
    )  # fmt: skip
