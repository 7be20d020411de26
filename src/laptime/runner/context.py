"""The context of a run, which all its parts need."""

from dataclasses import dataclass
from pathlib import Path

from laptime.config.schema import Config
from laptime.ranks.stopping import StopRequest
from laptime.record.run_record import RunRecord


@dataclass(frozen=True)
class SweepContext:
    """The facts about a sweep that one of its runs needs.

    Attributes:
        threads_per_rank: the value of `strategy.threads_per_rank=auto`, the same for all runs of the sweep.
        label: the swept values of this run, e.g. `seed=1`; empty: it is the only run.
        runs_at_once: number of the sweep's runs that share this machine.
    """

    threads_per_rank: int
    label: str = ""
    runs_at_once: int = 1


@dataclass(frozen=True)
class RunContext:
    """One attempt at a run, in one process.

    Attributes:
        config: the resolved configuration.
        run_dir: the absolute path of the run directory, which exists.
        record: the content of run.json so far. The parts of a run fill it in.
        stop: the request to stop early, if there is one.
        start: `time.time()` when the run or this attempt began.
        sweep: the sweep that the run belongs to; None: a single run.
    """

    config: Config
    run_dir: Path
    record: RunRecord
    stop: StopRequest
    start: float
    sweep: SweepContext | None = None

    @property
    def runs_at_once(self) -> int:
        """The number of the sweep's runs that share this machine; 1 for a single run."""
        return 1 if self.sweep is None else self.sweep.runs_at_once
