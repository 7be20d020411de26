"""Starts the ranks of one run, watches them, and sees to it that the record is complete, however the run ends."""

import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from laptime.config.schema import hashed_config
from laptime.errors import Interrupted, RankFailed, TrainingFailed, UserError
from laptime.machine.device import available_accelerator, cpu_name, usable_cores
from laptime.machine.environment import environment, git_state, settings_have_changed
from laptime.ranks import preflight, shared_memory, torchrun
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import SIGNALS, StopRequest, heeding_signals
from laptime.record import files as records
from laptime.record.heartbeat import beating
from laptime.record.masking import mask, mask_command, mask_text, secret_values
from laptime.runner import fresh_processes, rank_process
from laptime.runner.rank_process import Job, Outcome, describe
from laptime.runner.trackers import end_trackers
from laptime.runner.train import train
from laptime.terminal import relative
from laptime.training import checkpoints
from laptime.training.faults import out_of_memory_kills

log = logging.getLogger(__name__)

# How long the other ranks may take to end by themselves once one has failed, or once the run was interrupted.
_GRACE_S = 2.0
_INTERRUPT_GRACE_S = 30.0
# How long ranks under torchrun wait for the others' word before they are said to be dead; torchrun itself waits 30 s.
_SILENCE_S = 10.0
# As many descriptors as a process opens, as measured, to start ranks and to let them meet: of two each.
_PIPES, _PIPES_PER_RANK = 6, 2


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
        return _join(config, run_dir, command, start)
    ranks = plan(config, sweep_world_size)
    attempt = 0
    if goes_on:
        record = records.read_record(run_dir) | {"config": mask(config)}
        attempt = len(record["attempts"])
    else:
        record = _first_record(config, run_dir, command, start)
    with heeding_signals() as stop:
        if _stays_here(config, sweep_world_size):
            work = partial(_train_here, config, run_dir, record, ranks[0], stop, start)
            return _attempt(config, run_dir, record, 0, work)
        return _launch_processes(config, run_dir, record, ranks, stop, start, attempt)


def _first_record(config: Mapping[str, Any], run_dir: Path, command: Sequence[str], start: float) -> dict[str, Any]:
    record = records.new_record()
    record["started_at"] = records.timestamp(start)
    record["config"] = mask(config)
    record["seed"] = config["seed"]
    record["command"] = mask_command(command, secret_values(config))
    record["environment"] = environment(cpu_name(), usable_cores(), config)
    record["git"] = git_state(Path(__file__).parent)
    records.write_record(run_dir, record)
    return record


def _join(config: Mapping[str, Any], run_dir: Path, command: Sequence[str], start: float) -> dict[str, Any]:
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
    _check_devices(config, torchrun.world_size(), torchrun.local_world_size())
    config = {**config, "strategy": {**strategy, "world_size": torchrun.world_size()}}
    is_first, attempt = torchrun.rank() == 0, torchrun.attempt()
    record = records.new_record()
    if is_first:
        typed = torchrun.command(command)
        record = records.read_record(run_dir) if attempt else _first_record(config, run_dir, typed, start)

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
            return _attempt(config, run_dir, record, attempt, partial(work, stop))
        records.start_attempt(record, attempt)
        return work(stop)


def _train_joined(
    config: Mapping[str, Any], run_dir: Path, record: dict[str, Any], stop: StopRequest, start: float
) -> None:
    strategy = config["strategy"]
    peers = torchrun.meet(config, usable_cores(), strategy["timeout_s"])
    rank = torchrun.this_rank(strategy["threads_per_rank"], peers)
    if strategy["pin_ranks"]:
        rank = _pinned(rank)
    rank.settle()
    if rank.local_rank == 0 and not rank.is_first:
        print(f"laptime: rank {rank.rank} of {rank.world_size}; rank 0 keeps the record.", file=sys.stderr)
    rank_process.end_with_torchrun(rank, run_dir)
    if rank.world_size > 1 or strategy["wrap_single_rank"]:
        rank_process.join_torchrun(backend_of(config), strategy["timeout_s"])
    # The first rank alone knows: the others may be on machines with disks of their own.
    if rank.attempt:
        config = _resuming(config, rank.gather(checkpoints.last_whole(run_dir) if rank.is_first else None)[0])
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
    if not _is_consequence(own):
        first = torchrun.report(own, timeout_s)
        return error if first["rank"] == this else _as_exception(first, first["rank"])
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
        return _as_exception(told, told["rank"])
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


def backend_of(config: Mapping[str, Any]) -> str:
    """The communication library of this configuration on this machine: gloo, nccl or Intel's xccl."""
    backend: str = config["strategy"]["backend"]
    if backend != "auto":
        return backend
    return {"cuda": "nccl", "xpu": "xccl"}.get(accelerator_of(config) or "", "gloo")


def num_ranks(config: Mapping[str, Any]) -> int:
    """The number that `strategy.world_size` stands for: `auto` is a rank per GPU, one where the CPU trains."""
    world_size: int | str = config["strategy"]["world_size"]
    if isinstance(world_size, int):
        return world_size
    return torch.accelerator.device_count() if accelerator_of(config) else 1


def threads_per_rank(config: Mapping[str, Any], sweep_world_size: int | None = None) -> int:
    """The number that `strategy.threads_per_rank` stands for, in a sweep of up to `sweep_world_size` ranks."""
    threads: int | str = config["strategy"]["threads_per_rank"]
    if isinstance(threads, int):
        return threads
    return max(1, usable_cores() // max(num_ranks(config), sweep_world_size or 1))


def will_be_hashed(
    config: Mapping[str, Any], sweep_world_size: int | None = None, runs_at_once: int = 1
) -> dict[str, Any]:
    """What the run's `hashed_config` will be on this machine, shared by so many runs of its sweep."""
    threads = threads_per_rank(config, (sweep_world_size or 1) * runs_at_once)
    config = {**config, "runs_at_once": runs_at_once}
    return hashed_config(config, accelerator_of(config) or "cpu", num_ranks(config), threads)


def plan(config: Mapping[str, Any], sweep_world_size: int | None = None) -> list[Rank]:
    """Which ranks there will be, with how many threads and on which cores.

    Args:
        config: resolved, plain values.
        sweep_world_size: the largest world size of the sweep; None: no sweep.

    Raises:
        UserError: this machine can't run them.
    """
    strategy = config["strategy"]
    world_size = num_ranks(config)
    _check_devices(config, world_size, world_size)
    cores = usable_cores()
    threads = threads_per_rank(config, sweep_world_size)
    oversubscribed = world_size * threads > cores
    ranks = [
        Rank(
            rank=number,
            local_rank=number,
            place=number,
            world_size=world_size,
            threads=threads,
            oversubscribed=oversubscribed,
        )
        for number in range(world_size)
    ]
    pin = strategy["pin_ranks"] and not _stays_here(config, sweep_world_size)
    return [_pinned(rank) for rank in ranks] if pin else ranks


def _stays_here(config: Mapping[str, Any], sweep_world_size: int | None) -> bool:
    """Whether the run trains in this process: one plain rank, and no sweep whose runs would warm each other."""
    # A mapped file that becomes shorter ends the process that reads it: somebody must be left to say so, or, with
    # strategy.max_restarts, to start it again.
    may_end = config["dataset"].get("pipeline") == "mapped" or config["strategy"]["max_restarts"] > 0
    wrapped = config["strategy"]["wrap_single_rank"]
    alone = num_ranks(config) == 1 and sweep_world_size is None and not wrapped
    return alone and not may_end and not settings_have_changed()  # which torch has read in this process


def _check_devices(config: Mapping[str, Any], world_size: int, local_world_size: int) -> None:
    """Refuse what the devices of this machine can't do: `world_size` ranks, `local_world_size` of them here."""
    accelerator = accelerator_of(config)
    if accelerator == "mps" and world_size > 1:
        raise UserError(
            f"strategy.world_size={world_size}: a Mac has one MPS device, and gloo can't average tensors on it. "
            "Use device=cpu for several ranks, or strategy.world_size=1."
        )
    num_devices = torch.accelerator.device_count() if accelerator else 0
    if accelerator and local_world_size > num_devices:
        raise UserError(
            f"strategy.world_size={world_size}: there are {num_devices} {accelerator} devices (that "
            "CUDA_VISIBLE_DEVICES leaves, if it is set), and each rank needs its own. Use fewer ranks or device=cpu."
        )
    if config["strategy"]["backend"] == "nccl" and accelerator != "cuda":
        raise UserError("strategy.backend=nccl: needs CUDA devices. Use strategy.backend=auto.")
    if config["strategy"]["comm_hook"] == "shared_memory":
        instead = "Use strategy.comm_hook=none."
        if accelerator:
            raise UserError(
                f"strategy.comm_hook=shared_memory: gradients on {accelerator} are not in memory that processes share. "
                f"{instead}"
            )
        if sys.platform != "linux":
            raise UserError(f"strategy.comm_hook=shared_memory: only on Linux can processes share it so. {instead}")


def accelerator_of(config: Mapping[str, Any]) -> str | None:
    """The accelerator that will train: cuda, mps or xpu; None: the CPU, as was asked or as what is left."""
    available = available_accelerator()
    return available if config["device"]["name"] in ("auto", "accelerator", available) else None


def _pinned(rank: Rank) -> Rank:
    """The rank with its own part of this machine's cores.

    Without one where there are too few, where the system can't pin, and where a quota or an allocation grants fewer
    cores than the process may be put on: others, with quotas of their own, would all take the first of them.
    """
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if rank.oversubscribed or len(affinity) != usable_cores():
        return rank
    return replace(rank, cores=tuple(affinity[rank.place * rank.threads : (rank.place + 1) * rank.threads]))


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
    resumed = _resuming(config, checkpoints.last_whole(run_dir)) if first_attempt else config
    for attempt in range(first_attempt, last_attempt + 1):
        numbered = [replace(rank, attempt=attempt) for rank in ranks]
        work = partial(_run_processes, resumed, run_dir, record, numbered, stop, start)
        try:
            return _attempt(config, run_dir, record, attempt, work)
        except RankFailed as failure:
            if attempt == last_attempt:
                raise
            # Without a checkpoint of this run's own: as the first time.
            checkpoint = checkpoints.last_whole(run_dir)
            resumed = _resuming(config, checkpoint)
            log.warning(
                "%s: starting the ranks again, %s",
                failure,
                f"from {checkpoint}" if resumed is not config else "from the beginning",
            )
            record, start = records.read_record(run_dir), time.time()
    raise AssertionError("unreachable")


def _resuming(config: Mapping[str, Any], checkpoint: Path | None) -> Mapping[str, Any]:
    """The configuration that goes on from a checkpoint; None: there is none, it stays as it is."""
    if checkpoint is None:
        return config
    return {**config, "training": {**config["training"], "checkpoint": str(checkpoint)}}


def _attempt(
    config: Mapping[str, Any],
    run_dir: Path,
    record: dict[str, Any],
    attempt: int,
    work: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Do the work, and whatever comes of it, say so in run.json, beside what the first rank wrote there."""
    records.start_attempt(record, attempt)
    records.write_record(run_dir, record)
    status: str = "failed"
    error: dict[str, Any] | None = None
    try:
        with beating(run_dir):
            record = work()
        status = "completed"
    except BaseException as failure:
        error = describe(failure)
        if isinstance(failure, Interrupted | KeyboardInterrupt):
            status = "interrupted"
        if isinstance(failure, RankFailed):
            error = failure.error
        secrets = secret_values(config)  # an error may quote what it was given
        error = {key: mask_text(value, secrets) if isinstance(value, str) else value for key, value in error.items()}
        if isinstance(failure, TrainingFailed | RankFailed):
            log.error("failed: %s", failure)
        elif "traceback" in error and not isinstance(failure, KeyboardInterrupt):
            log.error("failed: %s: %s", error["type"], error["message"])
        if isinstance(failure, Interrupted):
            on = "what was measured until now is kept"
            if not (run_dir / records.EPOCHS_FILE).exists():
                on += "; no epoch was completed"
            elif not config["run_label"]:  # how a sweep goes on, its end says
                elsewhere = any(each.lstrip("+").startswith("hydra.run.dir=") for each in record["command"])
                checkpoint = shlex.quote(f"training.checkpoint={relative(run_dir)}")
                also = " and another hydra.run.dir" if elsewhere else ""
                on += f"; the same command with {checkpoint}{also} goes on from the last whole epoch"
            log.warning("%s: %s", failure, on)
        record = _read_back(run_dir, record)
        if isinstance(failure, SystemExit):  # of a class of the user's own; its code is not that of this command
            raise TrainingFailed(f"something called sys.exit({failure.code})") from failure
        raise
    finally:
        # Whatever else is pressed now: the record is finished first.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        records.end_attempt(record, status, error)
        try:
            records.write_record(run_dir, record)
        except OSError as unwritten:
            if status == "completed":
                raise
            log.error("%s can't be written (%s): it stays as it was", run_dir / records.RUN_FILE, unwritten)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return record


def _read_back(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What the first rank has written since; what was known before where that can't be read."""
    try:
        return records.read_record(run_dir)
    except (OSError, ValueError):
        return record


@dataclass
class _Child:
    rank: Rank
    process: BaseProcess
    connection: Connection
    outcome: Outcome | None = None


def _run_processes(
    config: Mapping[str, Any],
    run_dir: Path,
    record: dict[str, Any],
    ranks: list[Rank],
    stop: StopRequest,
    start: float,
) -> dict[str, Any]:
    strategy = config["strategy"]
    group = len(ranks) > 1 or strategy["wrap_single_rank"]
    children: list[_Child] = []
    _require_file_descriptors(len(ranks))
    with meeting(strategy, group) as address:
        try:
            for rank in ranks:
                backend, timeout_s = backend_of(config), strategy["timeout_s"]
                job = Job(config, run_dir, record, rank, address, backend, timeout_s, start, dict(os.environ))
                children.append(_start(job))
            _watch(children, stop, strategy["timeout_s"], out_of_memory_kills())
        finally:
            _end(children)
    failed = [child for child in children if child.outcome is None or child.outcome.error is not None]
    if children[0] in failed and _had_no_last_word(children[0]):
        end_trackers(config, run_dir, record, "failed" if stop.signum is None else "interrupted")
    if stop.signum is not None:
        raise Interrupted(stop.signum)
    if failed:
        raise _blame(failed, strategy["timeout_s"])
    first = children[0].outcome
    assert first is not None and first.record is not None
    return first.record


def _require_file_descriptors(world_size: int) -> None:
    """Find out whether this process may open what it needs for its ranks: torch's store waits in vain for a socket.

    Raises:
        OSError: EMFILE, it may not.
    """
    opened: list[int] = []
    try:
        for _ in range(_PIPES + world_size * _PIPES_PER_RANK):
            opened += os.pipe()
    finally:
        for descriptor in opened:
            os.close(descriptor)


@contextmanager
def meeting(strategy: Mapping[str, Any], group: bool) -> Iterator[tuple[str, int] | None]:
    """The store where the ranks meet, listening on `strategy.master_addr` alone (torch's own would listen on all)."""
    if not group:
        yield None
        return
    host, port = _loopback_address(strategy["master_addr"]), strategy["master_port"]
    try:
        listener = socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise UserError(
            f"strategy.master_addr={host} strategy.master_port={port}: can't be listened on "
            f"({os.strerror(error.errno) if error.errno else error}). Use strategy.master_port=0 for a free port."
        ) from error
    port = listener.getsockname()[1]
    timeout = timedelta(seconds=strategy["timeout_s"])
    store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listener.detach()
    )
    try:
        yield host, port
    finally:
        del store


def _loopback_address(host: str) -> str:
    """The address that a name of this machine's loopback interface stands for.

    Raises:
        UserError: it is none: others could reach the ranks there.
    """
    try:
        address = socket.gethostbyname(host) if host else ""
    except OSError:
        address = ""
    if not address.startswith("127."):
        raise UserError(
            f"strategy.master_addr={host}: the ranks that Laptime starts meet on this machine's loopback interface. "
            "Use 127.0.0.1; for several machines use torchrun."
        )
    return address


def _start(job: Job) -> _Child:
    process, connection = fresh_processes.start(rank_process.main, job, f"laptime rank {job.rank.rank}")
    return _Child(job.rank, process, connection)


def _watch(children: list[_Child], stop: StopRequest, timeout_s: float, kills: int) -> None:
    """Until all ranks are done, or one has failed and the others had a moment to say so too."""
    stop.immediate = False
    deadline: float | None = None
    all_stopped_since: float | None = None
    told = False
    while any(child.outcome is None for child in children):
        waiting = [child.connection for child in children if child.outcome is None]
        for connection in wait(waiting, timeout=0.1):
            child = next(child for child in children if child.connection is connection)
            try:
                child.outcome = child.connection.recv()
            except (EOFError, OSError):
                child.process.join(timeout=5)
                child.outcome = Outcome(child.rank.rank, error=_death(child.process, kills))
        if stop.signum is not None and not told:
            told = True
            deadline = time.monotonic() + _INTERRUPT_GRACE_S
            for child in children:
                if child.process.is_alive() and child.process.pid is not None:
                    os.kill(child.process.pid, signal.SIGTERM)
                    if hasattr(signal, "SIGCONT"):
                        os.kill(child.process.pid, signal.SIGCONT)  # a stopped one would not notice
        if deadline is None and any(child.outcome is not None and child.outcome.error for child in children):
            deadline = time.monotonic() + _GRACE_S
        # A rank that is stopped is missed by the others; where all are, nobody complains.
        if all(child.outcome is not None or _is_stopped(child.process) for child in children):
            all_stopped_since = all_stopped_since or time.monotonic()
            if time.monotonic() - all_stopped_since >= timeout_s:
                return
        else:
            all_stopped_since = None
        if deadline is not None and time.monotonic() >= deadline:
            return


def _is_stopped(process: BaseProcess) -> bool:
    """Whether a process is held by SIGSTOP or a debugger."""
    try:
        return psutil.Process(process.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def _death(process: BaseProcess, kills: int) -> dict[str, Any]:
    """How a process ended that had nothing to say; `kills`: `out_of_memory_kills()` when it started."""
    code = process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    if code == -getattr(signal, "SIGKILL", 9) and out_of_memory_kills() > kills:
        how += " when the system ran out of memory: try a smaller training.batch_size, or fewer ranks"
    if code == -getattr(signal, "SIGBUS", 7):
        how += ": a file that it had mapped became shorter, or its disk failed (dataset.pipeline=mapped)"
    return {"type": "RankDied", "message": how}


def _end(children: list[_Child]) -> None:
    """Leave no process behind."""
    for child in children:
        if child.outcome is not None and child.outcome.error is None:
            child.process.join(timeout=5)
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
        child.connection.close()
    for child in children:
        if child.process.pid is not None and child.process.exitcode:
            shared_memory.remove_left_behind(child.process.pid)


def _had_no_last_word(child: _Child) -> bool:
    """Whether a rank was killed, or was stuck until it was."""
    return child.outcome is None or (child.outcome.error or {}).get("type") == "RankDied"


def _is_lost_contact(error: Mapping[str, Any]) -> bool:
    """Whether a rank complains that another no longer answers: the other's end is the cause."""
    return "traceback" in error and ("gloo" in error["message"] or error["type"].startswith("Dist"))


def _is_consequence(error: Mapping[str, Any]) -> bool:
    """Whether a rank's end may follow from what happened to another one."""
    return error["type"] == "Interrupted" or _is_lost_contact(error)


def _blame(failed: list[_Child], timeout_s: float) -> Exception:
    """Which rank's error is the cause, when one rank's end makes the others fail too."""

    def weight(child: _Child) -> int:
        if child.outcome is None:
            return 4
        error = child.outcome.error or {}
        if error["type"] in ("UserError", "TrainingFailed"):
            return 0
        if error["type"] == "RankDied":
            return 1
        if error["type"] == "Interrupted":
            return 2
        return 5 if _is_lost_contact(error) else 3

    child = min(failed, key=weight)
    number = child.rank.rank
    if child.outcome is None:
        message = f"rank {number} did not answer within strategy.timeout_s={timeout_s}"
        return RankFailed(message, {"type": "RankStuck", "message": message, "rank": number})
    return _as_exception(child.outcome.error or {}, number)


def _as_exception(error: Mapping[str, Any], rank: int) -> Exception:
    """A rank's error in plain values (`describe`) as the run's."""
    if error["type"] == "UserError":
        return UserError(error["message"])
    if error["type"] == "TrainingFailed":
        return TrainingFailed(error["message"], error["epoch"], error["step"])
    if error["type"] == "Interrupted":
        return Interrupted(error["signum"])
    message = f"rank {rank}: {error['type']}: {error['message']}"
    if error["type"] == "RankDied":
        message = f"rank {rank} {error['message']}"
    return RankFailed(message, {**error, "rank": rank, "message": message})
