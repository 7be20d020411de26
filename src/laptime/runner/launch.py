"""Trains one run: in this process, in new rank processes, or as a rank of torchrun's."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from laptime.config.schema import Config
from laptime.ranks import preflight, torchrun
from laptime.ranks.failures import RankFailed
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import stop_on_signals
from laptime.record.run_record import RunRecord
from laptime.runner.attempt import attempt_run, describe_run, resume_from, start_record
from laptime.runner.context import RunContext, SweepContext
from laptime.runner.elastic import join_ranks
from laptime.runner.rank_plan import plan, trains_in_this_process
from laptime.runner.supervise import run_processes
from laptime.runner.train import train
from laptime.training import checkpoints

log = logging.getLogger(__name__)


def launch(
    config: Config,
    run_dir: Path,
    command: Sequence[str],
    start: float | None = None,
    sweep: SweepContext | None = None,
    resume: bool = False,
    experiment: str | None = None,
) -> RunRecord:
    """Run one training job.

    A single run of one rank without DDP trains in this process, so that a debugger works. All other runs train in fresh
    processes.

    Args:
        run_dir: the absolute path of the run directory, which exists.
        command: the command line that the user typed.
        start: `time.time()` when the run began; None: now.
        sweep: the sweep that this run belongs to; None: a single run.
        resume: whether to resume this run of a sweep from its last checkpoint in `run_dir`.
        experiment: the option of the group `experiment`; None: none was chosen.

    Raises:
        UserError, TrainingFailed, Interrupted, RankFailed: the run failed, and run.json has recorded the error. Any
            other exception is recorded, too.
    """
    start = time.time() if start is None else start
    preflight.check_environment()  # here, because a launcher may run the job on another machine
    if torchrun.is_joined():
        return join_ranks(config, run_dir, command, start, experiment)
    ranks = plan(config, sweep)
    attempt = 0
    if resume:
        record = RunRecord.read(run_dir)
        describe_run(record, config, run_dir, sweep, experiment)
        attempt = len(record.attempts)
    else:
        record = start_record(config, run_dir, command, start, sweep, experiment)
    with stop_on_signals() as stop:
        run = RunContext(config, run_dir, record, stop, start, sweep)
        if trains_in_this_process(config, sweep):
            return attempt_run(run, 0, partial(_train_in_this_process, run, ranks[0]))
        return _launch_processes(run, ranks, attempt)


def _train_in_this_process(run: RunContext, rank: Rank) -> RunRecord:
    rank.apply_affinity()
    train(run, rank)
    return run.record


def _launch_processes(run: RunContext, ranks: list[Rank], first_attempt: int) -> RunRecord:
    """Start the ranks. After a failure, restart them from the last checkpoint, up to `strategy.max_restarts` times."""
    config = run.config
    last_attempt = first_attempt + config.strategy.max_restarts
    if first_attempt:
        run = replace(run, config=resume_from(config, checkpoints.last_intact(run.run_dir)))
    for attempt in range(first_attempt, last_attempt + 1):
        numbered = [replace(rank, attempt=attempt) for rank in ranks]
        try:
            return attempt_run(run, attempt, partial(run_processes, run, numbered))
        except RankFailed as failure:
            if attempt == last_attempt:
                raise
            # Before this run's first checkpoint, the ranks restart as they started.
            checkpoint = checkpoints.last_intact(run.run_dir)
            restart_point = "the beginning" if checkpoint is None else checkpoint
            log.warning("%s: restarting the ranks from %s", failure, restart_point)
            record = RunRecord.read(run.run_dir)
            run = replace(run, config=resume_from(config, checkpoint), record=record, start=time.time())
    raise AssertionError("unreachable")
