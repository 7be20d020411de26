"""What every part of a run needs to know of it."""

from dataclasses import dataclass
from pathlib import Path

from laptime.config.schema import Config
from laptime.ranks.stopping import StopRequest
from laptime.record.run_record import RunRecord


@dataclass(frozen=True)
class RunContext:
    """One attempt at a run, in one process.

    Attributes:
        config: as resolved; it can't be changed.
        run_dir: absolute; exists.
        record: what is known so far; whoever learns more fills it in.
        stop: says when to end early.
        start: `time.time()` when the run, or this attempt, began.
    """

    config: Config
    run_dir: Path
    record: RunRecord
    stop: StopRequest
    start: float
