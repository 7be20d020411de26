"""Being one of the ranks that torchrun has started."""

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
from laptime.runner.attempt import attempt_run, first_record, resumed_from
from laptime.runner.context import RunContext
from laptime.runner.rank_plan import backend_of, check_devices, pinned
from laptime.runner.train import train
from laptime.training import checkpoints

# How long ranks under torchrun wait for the others' word before they are said to be dead; torchrun itself waits 30 s.
_SILENCE_S = 10.0


def join_ranks(
    config: Config, run_dir: Path, command: Sequence[str], start: float, experiment: str | None = None
) -> RunRecord:
    """Be one of the ranks that torchrun has started; the first one keeps the record."""
    strategy = config.strategy
    if settings_have_changed():
        raise UserError(
            "hydra.job.env_set: has no effect on ranks of torchrun, which have loaded torch already. Set them "
            "in the shell."
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
            f"strategy.max_restarts={strategy.max_restarts}: the ranks that torchrun has started are started again "
            f"by torchrun. Write torchrun --max-restarts {strategy.max_restarts} instead."
        )
    check_devices(config, torchrun.world_size(), torchrun.local_world_size())
    config = replace(config, strategy=replace(strategy, world_size=torchrun.world_size()))
    is_first, attempt = torchrun.rank() == 0, torchrun.attempt()
    record = RunRecord()
    if is_first:
        typed = torchrun.command(command)
        if attempt:
            record = RunRecord.read(run_dir)
        else:
            record = first_record(config, run_dir, typed, start, experiment=experiment)

    def work(run: RunContext) -> RunRecord:
        try:
            _train_joined(run)
            torchrun.post_exit(None, strategy.timeout_s)
        except BaseException as error:
            run.stop.immediate = False  # torchrun tells all ranks to end once one has failed: why comes first
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
        print(f"laptime: rank {rank.rank} of {rank.world_size}; rank 0 keeps the record.", file=sys.stderr)
    rank_process.end_with_torchrun(rank, run.run_dir)
    if rank.world_size > 1 or strategy.wrap_single_rank:
        rank_process.join_torchrun(backend_of(config), strategy.timeout_s)
    # The first rank alone knows: the others may be on machines with disks of their own.
    if rank.attempt:
        checkpoint = rank.gather(checkpoints.last_intact(run.run_dir) if rank.is_first else None)[0]
        run = replace(run, config=resumed_from(config, checkpoint))
    train(run, rank)
    # Together, and before Python's shutdown: threads of a group that is still there end the process there.
    rank.barrier()
    if rank.is_distributed:
        dist.destroy_process_group()


def _cause_under_torchrun(error: BaseException, run_dir: Path, timeout_s: float) -> BaseException:
    """What ended the run, of which this rank's error may be a mere consequence: being told to end by torchrun, and
    the silence of a rank that was killed, follow from what happened to another."""
    own, this = RankFailure.of(error), torchrun.rank()
    torchrun.post_exit(own, timeout_s)
    if not own.is_consequence:
        first = torchrun.report(own, timeout_s)
        return error if first.rank == this or first.failure is None else first.failure.as_exception(first.rank)
    if isinstance(error, Interrupted) and dist.is_initialized():
        # Another rank may be waiting for this one's gradients, deaf to the same signal until this one is gone.
        shared_memory.close_all()
        with suppress(RuntimeError):
            dist.destroy_process_group()
    try:
        words = torchrun.collect_exits(_SILENCE_S, timeout_s)
    except (RuntimeError, OSError):
        return error
    told = torchrun.first_report(timeout_s)
    if told is not None and told.failure is not None:
        return told.failure.as_exception(told.rank)
    silent = sorted(set(range(torchrun.world_size())) - set(words))
    if not silent:
        signals = [each.signum for each in words.values() if each is not None and each.cause is Cause.INTERRUPTED]
        return error if not signals or isinstance(error, Interrupted) else Interrupted(signals[0])
    message = f"rank {', '.join(map(str, silent))} no longer answers: killed, stuck, or its machine is gone"
    failure = RunError(type="RankDied", message=message, rank=silent[0])
    if 0 in silent and this == min(words) and (run_dir / RUN_FILE).exists():
        record = RunRecord.read(run_dir)
        record.end_attempt("failed", failure)
        record.write(run_dir)
    return RankFailed(message, failure)
