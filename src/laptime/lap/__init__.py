"""Clocks, counters and recorders of laps, for any training. Knows no images and no configuration."""

from laptime.lap.clock import Lap, LapClock

__all__ = ["Lap", "LapClock"]
