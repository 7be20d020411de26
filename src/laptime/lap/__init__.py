"""Clocks and counts of one epoch, and the rows that come of them. Knows no images and no configuration."""

from laptime.lap.epoch_timer import EpochTimer, Lap

__all__ = ["EpochTimer", "Lap"]
