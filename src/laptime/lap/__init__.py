"""What laps of any training are timed, counted and recorded with. Knows no images and no configuration."""

from laptime.lap.clock import Lap, LapClock

__all__ = ["Lap", "LapClock"]
