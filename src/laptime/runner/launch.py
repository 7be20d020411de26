"""Trains one run: in this process, in ranks of its own, or as one of torchrun's."""

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
from laptime.runner.attempt import attempt_run, describe_run, first_record, resumed_from
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

    A single run of one plain rank trains in this process, so that a debugger works; all others in fresh processes.

    Args:
        run_dir: absolute; exists.
        command: as typed.
        start: `time.time()` when the run began; None: now.
        sweep: that this run belongs to; None: a run by itself.
        resume: with what `run_dir` holds of the same run of a sweep that ended early, from its last checkpoint.
        experiment: the option of the group `experiment`; None: none was chosen.

    Returns:
        The record.

    Raises:
        UserError, TrainingFailed, Interrupted, RankFailed, or whatever went wrong, after run.json says so.
    """
    start = time.time() if start is None else start
    preflight.check_environment()  # in the process that runs the job: a launcher may have started it elsewhere
    if torchrun.is_joined():
        return join_ranks(config, run_dir, command, start, experiment)
    ranks = plan(config, sweep)
    attempt = 0
    if resume:
        record = RunRecord.read(run_dir)
        describe_run(record, config, run_dir, sweep, experiment)
        attempt = len(record.attempts)
    else:
        record = first_record(config, run_dir, command, start, sweep, experiment)
    with stop_on_signals() as stop:
        run = RunContext(config, run_dir, record, stop, start, sweep)
        if trains_in_this_process(config, sweep):
            return attempt_run(run, 0, partial(_train_here, run, ranks[0]))
        return _launch_processes(run, ranks, attempt)


def _train_here(run: RunContext, rank: Rank) -> RunRecord:
    rank.apply_affinity()
    train(run, rank)
    return run.record


def _launch_processes(run: RunContext, ranks: list[Rank], first_attempt: int) -> RunRecord:
    """Start the ranks, again from the last checkpoint while `strategy.max_restarts` allows."""
    config = run.config
    last_attempt = first_attempt + config.strategy.max_restarts
    if first_attempt:
        run = replace(run, config=resumed_from(config, checkpoints.last_intact(run.run_dir)))
    for attempt in range(first_attempt, last_attempt + 1):
        numbered = [replace(rank, attempt=attempt) for rank in ranks]
        try:
            return attempt_run(run, attempt, partial(run_processes, run, numbered))
        except RankFailed as failure:
            if attempt == last_attempt:
                raise
            # Without a checkpoint of this run's own: as the first time.
            checkpoint = checkpoints.last_intact(run.run_dir)
            place = "the beginning" if checkpoint is None else checkpoint
            log.warning("%s: starting the ranks again, from %s", failure, place)
            record = RunRecord.read(run.run_dir)
            run = replace(run, config=resumed_from(config, checkpoint), record=record, start=time.time())
    raise AssertionError("unreachable")
