"""What every part of a run needs to know of it."""

from dataclasses import dataclass
from pathlib import Path

from laptime.config.schema import Config
from laptime.ranks.stopping import StopRequest
from laptime.record.run_record import RunRecord


@dataclass(frozen=True)
class SweepContext:
    """What a run needs to know of the sweep that it belongs to.

    Attributes:
        threads_per_rank: that `strategy.threads_per_rank=auto` stands for, in each run, whatever its world size.
        label: what tells it from the other runs; empty: nothing does, it is the only one.
        runs_at_once: of the sweep, on one machine.
    """

    threads_per_rank: int
    label: str = ""
    runs_at_once: int = 1


@dataclass(frozen=True)
class RunContext:
    """One attempt at a run, in one process.

    Attributes:
        config: as resolved; it can't be changed.
        run_dir: absolute; exists.
        record: what is known so far; whoever learns more fills it in.
        stop: says when to end early.
        start: `time.time()` when the run, or this attempt, began.
        sweep: that the run belongs to; None: a run by itself.
    """

    config: Config
    run_dir: Path
    record: RunRecord
    stop: StopRequest
    start: float
    sweep: SweepContext | None = None

    @property
    def runs_at_once(self) -> int:
        """Runs of the sweep that share this machine; 1 for a single run."""
        return 1 if self.sweep is None else self.sweep.runs_at_once
