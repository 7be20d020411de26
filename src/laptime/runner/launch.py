"""Trains one run: in this process, in ranks of its own, or as one of torchrun's."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from laptime.errors import RankFailed
from laptime.ranks import preflight, torchrun
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest, heeding_signals
from laptime.record import files as records
from laptime.record.masking import mask
from laptime.runner.attempt import attempt_run, first_record, resuming
from laptime.runner.elastic import join_ranks
from laptime.runner.rank_plan import plan, stays_here
from laptime.runner.supervise import run_processes
from laptime.runner.train import train
from laptime.training import checkpoints

log = logging.getLogger(__name__)


def launch(
    config: Mapping[str, Any],
    run_dir: Path,
    command: Sequence[str],
    start: float | None = None,
    sweep_world_size: int | None = None,
    goes_on: bool = False,
) -> dict[str, Any]:
    """Run one training job.

    A single run of one plain rank trains in this process, so that a debugger works; all others in fresh processes.

    Args:
        config: resolved, plain values.
        run_dir: absolute; exists.
        command: as typed.
        start: `time.time()` when the run began; None: now.
        sweep_world_size: the largest world size of the sweep that this run belongs to; None: of none.
        goes_on: with what `run_dir` holds of the same run of a sweep that ended early, from its last checkpoint.

    Returns:
        The record, as run.json holds it.

    Raises:
        UserError, TrainingFailed, Interrupted, RankFailed, or whatever went wrong, after run.json says so.
    """
    start = time.time() if start is None else start
    preflight.check_environment()  # in the process that runs the job: a launcher may have started it elsewhere
    if torchrun.is_joined():
        return join_ranks(config, run_dir, command, start)
    ranks = plan(config, sweep_world_size)
    attempt = 0
    if goes_on:
        record = records.read_record(run_dir) | {"config": mask(config)}
        attempt = len(record["attempts"])
    else:
        record = first_record(config, run_dir, command, start)
    with heeding_signals() as stop:
        if stays_here(config, sweep_world_size):
            work = partial(_train_here, config, run_dir, record, ranks[0], stop, start)
            return attempt_run(config, run_dir, record, 0, work)
        return _launch_processes(config, run_dir, record, ranks, stop, start, attempt)


def _train_here(
    config: Mapping[str, Any], run_dir: Path, record: dict[str, Any], rank: Rank, stop: StopRequest, start: float
) -> dict[str, Any]:
    rank.settle()
    train(config, run_dir, record, rank, stop, start)
    return record


def _launch_processes(
    config: Mapping[str, Any],
    run_dir: Path,
    record: dict[str, Any],
    ranks: list[Rank],
    stop: StopRequest,
    start: float,
    first_attempt: int,
) -> dict[str, Any]:
    """Start the ranks, again from the last checkpoint while `strategy.max_restarts` allows."""
    last_attempt = first_attempt + config["strategy"]["max_restarts"]
    resumed = resuming(config, checkpoints.last_whole(run_dir)) if first_attempt else config
    for attempt in range(first_attempt, last_attempt + 1):
        numbered = [replace(rank, attempt=attempt) for rank in ranks]
        work = partial(run_processes, resumed, run_dir, record, numbered, stop, start)
        try:
            return attempt_run(config, run_dir, record, attempt, work)
        except RankFailed as failure:
            if attempt == last_attempt:
                raise
            # Without a checkpoint of this run's own: as the first time.
            checkpoint = checkpoints.last_whole(run_dir)
            resumed = resuming(config, checkpoint)
            log.warning(
                "%s: starting the ranks again, %s",
                failure,
                f"from {checkpoint}" if resumed is not config else "from the beginning",
            )
            record, start = records.read_record(run_dir), time.time()
    raise AssertionError("unreachable")
