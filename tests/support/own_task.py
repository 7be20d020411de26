"""Overrides for short runs of `task=own`, and their losses."""

from pathlib import Path

from laptime.record.files import read_epochs
from tests.support.settings import QUICK

OWN = [*QUICK, "task=own", "task.module._target_=own_modules.Sum", "task.data._target_=own_modules.TestedNumbers"]
TWO_RANKS = "strategy.world_size=2"


def losses(run_dir: Path | str) -> list[tuple[float, float]]:
    """Training and validation loss of every lap."""
    laps = read_epochs(Path(run_dir)).query("rank == 0")
    return list(zip(laps["train_loss"], laps["val_loss"], strict=True))
