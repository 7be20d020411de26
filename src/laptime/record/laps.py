"""The laps of a training: its epochs, or `training.max_steps` optimizer steps in laps of `training.lap_steps` each."""

from collections.abc import Mapping
from typing import Any

# Maximum number of laps if training.lap_steps is not set.
_MAX_LAPS = 10


def steps_per_lap(training: Mapping[str, Any]) -> int | None:
    """Return the optimizer steps of a lap; None: a lap is an epoch.

    Args:
        training: the group `training` of a configuration. Those of older versions have no max_steps.
    """
    max_steps, lap_steps = training.get("max_steps"), training.get("lap_steps")
    if max_steps is None:
        return None
    if lap_steps is not None:
        return int(lap_steps)
    return int(max_steps) // max(number for number in range(1, _MAX_LAPS + 1) if max_steps % number == 0)


def num_laps(training: Mapping[str, Any]) -> int:
    """Return the number of laps of a training: of its epochs, or of its laps of `steps_per_lap` steps.

    Args:
        training: the group `training` of a configuration.
    """
    lap_steps = steps_per_lap(training)
    if lap_steps is None:
        return int(training["epochs"])
    return int(training["max_steps"]) // max(1, lap_steps)  # 0 steps are refused later
