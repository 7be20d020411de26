"""Being one of the ranks that torchrun has started."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from laptime.errors import Interrupted, RankFailed, UserError
from laptime.machine.device import usable_cores
from laptime.machine.environment import settings_have_changed
from laptime.ranks import shared_memory, torchrun
from laptime.ranks.stopping import StopRequest, heeding_signals
from laptime.record import files as records
from laptime.runner import rank_process
from laptime.runner.attempt import attempt_run, first_record, resuming
from laptime.runner.failures import as_exception, is_consequence
from laptime.runner.rank_plan import backend_of, check_devices, pinned
from laptime.runner.rank_process import describe
from laptime.runner.train import train
from laptime.training import checkpoints

# How long ranks under torchrun wait for the others' word before they are said to be dead; torchrun itself waits 30 s.
_SILENCE_S = 10.0


def join_ranks(config: Mapping[str, Any], run_dir: Path, command: Sequence[str], start: float) -> dict[str, Any]:
    """Be one of the ranks that torchrun has started; the first one keeps the record."""
    strategy = config["strategy"]
    if settings_have_changed():
        raise UserError(
            "hydra.job.env_set: has no effect on ranks of torchrun, which have loaded torch already. Set them "
            "in the shell."
        )
    if strategy["world_size"] not in (1, "auto", torchrun.world_size()):
        raise UserError(
            f"strategy.world_size={strategy['world_size']}: torchrun has started {torchrun.world_size()} ranks. "
            "Leave strategy.world_size out."
        )
    if strategy["name"] == "single" and torchrun.world_size() > 1:
        raise UserError(f"strategy=single: torchrun has started {torchrun.world_size()} ranks. Use strategy=ddp.")
    if strategy["max_restarts"]:
        raise UserError(
            f"strategy.max_restarts={strategy['max_restarts']}: the ranks that torchrun has started are started again "
            f"by torchrun. Write torchrun --max-restarts {strategy['max_restarts']} instead."
        )
    check_devices(config, torchrun.world_size(), torchrun.local_world_size())
    config = {**config, "strategy": {**strategy, "world_size": torchrun.world_size()}}
    is_first, attempt = torchrun.rank() == 0, torchrun.attempt()
    record = records.new_record()
    if is_first:
        typed = torchrun.command(command)
        record = records.read_record(run_dir) if attempt else first_record(config, run_dir, typed, start)

    def work(stop: StopRequest) -> dict[str, Any]:
        try:
            _train_joined(config, run_dir, record, stop, start)
            torchrun.sign_off(None, strategy["timeout_s"])
        except BaseException as error:
            stop.immediate = False  # torchrun tells all ranks to end once one has failed: why comes first
            cause = _cause_under_torchrun(error, run_dir, strategy["timeout_s"])
            raise cause from (error if cause is not error else error.__cause__)
        return record

    with heeding_signals() as stop:
        if is_first:
            return attempt_run(config, run_dir, record, attempt, partial(work, stop))
        records.start_attempt(record, attempt)
        return work(stop)


def _train_joined(
    config: Mapping[str, Any], run_dir: Path, record: dict[str, Any], stop: StopRequest, start: float
) -> None:
    strategy = config["strategy"]
    peers = torchrun.meet(config, usable_cores(), strategy["timeout_s"])
    rank = torchrun.this_rank(strategy["threads_per_rank"], peers)
    if strategy["pin_ranks"]:
        rank = pinned(rank)
    rank.settle()
    if rank.local_rank == 0 and not rank.is_first:
        print(f"laptime: rank {rank.rank} of {rank.world_size}; rank 0 keeps the record.", file=sys.stderr)
    rank_process.end_with_torchrun(rank, run_dir)
    if rank.world_size > 1 or strategy["wrap_single_rank"]:
        rank_process.join_torchrun(backend_of(config), strategy["timeout_s"])
    # The first rank alone knows: the others may be on machines with disks of their own.
    if rank.attempt:
        config = resuming(config, rank.gather(checkpoints.last_whole(run_dir) if rank.is_first else None)[0])
    train(config, run_dir, record, rank, stop, start)
    # Together, and before Python's shutdown: threads of a group that is still there end the process there.
    rank.barrier()
    if rank.is_distributed:
        dist.destroy_process_group()


def _cause_under_torchrun(error: BaseException, run_dir: Path, timeout_s: float) -> BaseException:
    """What ended the run, of which this rank's error may be a mere consequence: being told to end by torchrun, and
    the silence of a rank that was killed, follow from what happened to another."""
    own, this = describe(error), torchrun.rank()
    torchrun.sign_off(own, timeout_s)
    if not is_consequence(own):
        first = torchrun.report(own, timeout_s)
        return error if first["rank"] == this else as_exception(first, first["rank"])
    if isinstance(error, Interrupted) and dist.is_initialized():
        # Another rank may be waiting for this one's gradients, deaf to the same signal until this one is gone.
        shared_memory.close_all()
        with suppress(RuntimeError):
            dist.destroy_process_group()
    try:
        words = torchrun.last_words(_SILENCE_S, timeout_s)
    except (RuntimeError, OSError):
        return error
    told = torchrun.reported(timeout_s)
    if told is not None:
        return as_exception(told, told["rank"])
    silent = sorted(set(range(torchrun.world_size())) - set(words))
    if not silent:
        interrupted = [each for each in words.values() if each is not None and each["type"] == "Interrupted"]
        return error if not interrupted or isinstance(error, Interrupted) else Interrupted(interrupted[0]["signum"])
    message = f"rank {', '.join(map(str, silent))} no longer answers: killed, stuck, or its machine is gone"
    failure = {"type": "RankDied", "message": message, "rank": silent[0]}
    if 0 in silent and this == min(words) and (run_dir / records.RUN_FILE).exists():
        record = records.read_record(run_dir)
        records.end_attempt(record, "failed", failure)
        records.write_record(run_dir, record)
    return RankFailed(message, failure)
