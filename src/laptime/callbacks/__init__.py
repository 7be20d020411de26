"""Lightning callbacks, one per file."""

from laptime.callbacks.checkpoint import Checkpoint
from laptime.callbacks.progress_bar import ProgressBar

__all__ = ["Checkpoint", "ProgressBar"]
