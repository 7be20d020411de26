"""Data sets, one per file, and the pipelines that make batches of them."""

from laptime.data.image_data import ImageData, Images

__all__ = ["ImageData", "Images"]
