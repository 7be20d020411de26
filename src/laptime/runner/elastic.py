"""Runs this process as one of the ranks that torchrun has started."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from laptime.config.schema import Config
from laptime.errors import Interrupted, UserError
from laptime.machine.device import usable_cores
from laptime.machine.environment import settings_have_changed
from laptime.ranks import shared_memory, torchrun
from laptime.ranks.failures import Cause, RankFailed, RankFailure
from laptime.ranks.stopping import stop_on_signals
from laptime.record.files import RUN_FILE
from laptime.record.run_record import RunRecord
from laptime.record.schema import RunError
from laptime.runner import rank_process
from laptime.runner.attempt import attempt_run, resume_from, start_record
from laptime.runner.context import RunContext
from laptime.runner.rank_plan import backend_of, check_devices, pinned
from laptime.runner.train import train
from laptime.training import checkpoints

# How long a rank waits for the exit reports of the others before it calls them dead. torchrun itself waits 30 s.
_EXIT_REPORT_TIMEOUT_S = 10.0


def join_ranks(
    config: Config, run_dir: Path, command: Sequence[str], start: float, experiment: str | None = None
) -> RunRecord:
    """Train as one of the ranks that torchrun has started. The first rank writes run.json."""
    strategy = config.strategy
    if settings_have_changed():
        raise UserError(
            "hydra.job.env_set: has no effect under torchrun, because its ranks have loaded torch already. Set the "
            "variables in the shell."
        )
    if strategy.world_size not in (1, "auto", torchrun.world_size()):
        raise UserError(
            f"strategy.world_size={strategy.world_size}: torchrun has started {torchrun.world_size()} ranks. "
            "Leave strategy.world_size out."
        )
    if strategy.name == "single" and torchrun.world_size() > 1:
        raise UserError(f"strategy=single: torchrun has started {torchrun.world_size()} ranks. Use strategy=ddp.")
    if strategy.max_restarts:
        raise UserError(
            f"strategy.max_restarts={strategy.max_restarts}: only torchrun can restart ranks that it has started. "
            f"Use torchrun --max-restarts {strategy.max_restarts} instead."
        )
    check_devices(config, torchrun.world_size(), torchrun.local_world_size())
    config = replace(config, strategy=replace(strategy, world_size=torchrun.world_size()))
    is_first, attempt = torchrun.rank() == 0, torchrun.attempt()
    if is_first and attempt:
        record = RunRecord.read(run_dir)
    elif is_first:
        record = start_record(config, run_dir, torchrun.command(command), start, experiment=experiment)
    else:
        record = RunRecord()

    def work(run: RunContext) -> RunRecord:
        try:
            _train_joined(run)
            torchrun.post_exit(None, strategy.timeout_s)
        except BaseException as error:
            run.stop.immediate = False  # find the cause before acting on torchrun's SIGTERM
            cause = _cause_under_torchrun(error, run_dir, strategy.timeout_s)
            raise cause from (error if cause is not error else error.__cause__)
        return run.record

    with stop_on_signals() as stop:
        run = RunContext(config, run_dir, record, stop, start)
        if is_first:
            return attempt_run(run, attempt, partial(work, run))
        record.start_attempt(attempt)
        return work(run)


def _train_joined(run: RunContext) -> None:
    config, strategy = run.config, run.config.strategy
    peers = torchrun.rendezvous(config.as_dict(), usable_cores(), strategy.timeout_s)
    rank = torchrun.this_rank(strategy.threads_per_rank, peers)
    if strategy.pin_ranks:
        rank = pinned(rank)
    rank.apply_affinity()
    if rank.local_rank == 0 and not rank.is_first:
        print(f"laptime: rank {rank.rank} of {rank.world_size}; rank 0 writes run.json.", file=sys.stderr)
    rank_process.end_with_torchrun(rank, run.run_dir)
    if rank.world_size > 1 or strategy.wrap_single_rank:
        rank_process.join_torchrun(backend_of(config), strategy.timeout_s)
    # Only the first rank knows the checkpoint, because other ranks may be on machines with other disks.
    if rank.attempt:
        checkpoint = rank.gather(checkpoints.last_intact(run.run_dir) if rank.is_first else None)[0]
        run = replace(run, config=resume_from(config, checkpoint))
    train(run, rank)
    # All ranks destroy the group together and before Python's shutdown, in which its threads would abort the process.
    rank.barrier()
    if rank.is_distributed:
        dist.destroy_process_group()


def _cause_under_torchrun(error: BaseException, run_dir: Path, timeout_s: float) -> BaseException:
    """Return the root cause of this rank's error.

    A SIGTERM from torchrun and a lost connection to a killed rank only follow from the failure of another rank.
    """
    failure, rank = RankFailure.of(error), torchrun.rank()
    torchrun.post_exit(failure, timeout_s)
    if not failure.is_consequence:
        first = torchrun.report(failure, timeout_s)
        return error if first.rank == rank or first.failure is None else first.failure.as_exception(first.rank)
    if isinstance(error, Interrupted) and dist.is_initialized():
        # Another rank may be blocked waiting for this one's gradients; it handles the signal once this one has left.
        shared_memory.close_all()
        with suppress(RuntimeError):
            dist.destroy_process_group()
    try:
        exits = torchrun.collect_exits(_EXIT_REPORT_TIMEOUT_S, timeout_s)
    except (RuntimeError, OSError):
        return error
    report = torchrun.first_report(timeout_s)
    if report is not None and report.failure is not None:
        return report.failure.as_exception(report.rank)
    silent_ranks = sorted(set(range(torchrun.world_size())) - set(exits))
    if not silent_ranks:
        signals = [exit_.signum for exit_ in exits.values() if exit_ is not None and exit_.cause is Cause.INTERRUPTED]
        return error if not signals or isinstance(error, Interrupted) else Interrupted(signals[0])
    message = f"rank {', '.join(map(str, silent_ranks))} does not respond: killed, stuck, or its machine is down"
    run_error = RunError(type="RankDied", message=message, rank=silent_ranks[0])
    if 0 in silent_ranks and rank == min(exits) and (run_dir / RUN_FILE).exists():
        record = RunRecord.read(run_dir)
        record.end_attempt("failed", run_error)
        record.write(run_dir)
    return RankFailed(message, run_error)
