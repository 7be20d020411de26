"""Starts a process for each rank of a run, watches the processes, and ends them."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import psutil
import torch.distributed as dist

from laptime.errors import Interrupted, UserError
from laptime.ranks import shared_memory
from laptime.ranks.failures import Cause, RankFailed, RankFailure
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.record.run_record import RunRecord
from laptime.record.schema import RunError
from laptime.runner import fresh_processes, rank_process
from laptime.runner.context import RunContext
from laptime.runner.rank_plan import backend_of
from laptime.runner.rank_process import Job, Outcome, Rendezvous
from laptime.runner.trackers import end_trackers
from laptime.training.faults import out_of_memory_kills

# Time for the other ranks to end by themselves after one rank has failed, or after an interruption.
_GRACE_S = 2.0

_INTERRUPT_GRACE_S = 30.0

# Pipes (two file descriptors each) that the launcher needs for itself and for each rank, as measured.
_NUM_PIPES, _NUM_PIPES_PER_RANK = 6, 2


@dataclass
class _Child:
    rank: Rank
    process: BaseProcess
    connection: Connection
    outcome: Outcome | None = None


def run_processes(run: RunContext, ranks: list[Rank]) -> RunRecord:
    """Train in fresh processes, one per rank, and leave none of them behind.

    Returns:
        The record that the first rank has filled in.

    Raises:
        RankFailed, UserError, TrainingFailed, Interrupted: the error of the rank that failed first.
    """
    config, strategy = run.config, run.config.strategy
    has_group = len(ranks) > 1 or strategy.wrap_single_rank
    children: list[_Child] = []
    _require_file_descriptors(len(ranks))
    address = (strategy.master_addr, strategy.master_port)
    store = rendezvous_store(*address, backend_of(config), strategy.timeout_s) if has_group else nullcontext()
    with store as rendezvous:
        try:
            for rank in ranks:
                job = Job(config, run.run_dir, run.record, rank, rendezvous, run.start, run.sweep, dict(os.environ))
                children.append(_start(job))
            _watch(children, run.stop, strategy.timeout_s, out_of_memory_kills())
        finally:
            _end(children)
    failed = [child for child in children if child.outcome is None or child.outcome.failure is not None]
    if children[0] in failed and _exited_without_report(children[0]):
        end_trackers(run, "failed" if run.stop.signum is None else "interrupted")
    if run.stop.signum is not None:
        raise Interrupted(run.stop.signum)
    if failed:
        raise _root_cause(failed, strategy.timeout_s)
    first = children[0].outcome
    assert first is not None and first.record is not None
    return first.record


def _require_file_descriptors(world_size: int) -> None:
    """Check that this process may open enough files for its ranks.

    Without them torch's TCPStore (torch 2.14; not reported) would wait until its timeout.

    Raises:
        OSError: the limit is too low (EMFILE).
    """
    opened: list[int] = []
    try:
        for _ in range(_NUM_PIPES + world_size * _NUM_PIPES_PER_RANK):
            opened += os.pipe()
    finally:
        for descriptor in opened:
            os.close(descriptor)


@contextmanager
def rendezvous_store(host: str, port: int, backend: str, timeout_s: float) -> Iterator[Rendezvous]:
    """Open the TCPStore where the ranks find each other.

    It listens on `host` only. By default, torch 2.14's store listens on all interfaces (not reported).

    Args:
        host, port: the values of `strategy.master_addr` and `strategy.master_port`; port 0: any free port.
        backend: the process group's backend.
        timeout_s: seconds that the ranks wait for each other.
    """
    host = _loopback_address(host)
    try:
        listener = socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise UserError(
            f"strategy.master_addr={host} strategy.master_port={port}: can't listen on this address "
            f"({os.strerror(error.errno) if error.errno else error}). Use strategy.master_port=0 for a free port."
        ) from error
    port = listener.getsockname()[1]
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listener.detach()
    )
    try:
        yield Rendezvous(host, port, backend, timeout_s)
    finally:
        del store


def _loopback_address(host: str) -> str:
    """Resolve a host name to an address of the loopback interface.

    Raises:
        UserError: it has another address, to which other machines could connect.
    """
    try:
        address = socket.gethostbyname(host) if host else ""
    except OSError:
        address = ""
    if not address.startswith("127."):
        raise UserError(
            f"strategy.master_addr={host}: must be a loopback address, because Laptime starts all ranks on this "
            "machine. Use 127.0.0.1; for several machines use torchrun."
        )
    return address


def _start(job: Job) -> _Child:
    process, connection = fresh_processes.start(rank_process.main, job, f"laptime rank {job.rank.rank}")
    return _Child(job.rank, process, connection)


def _watch(children: list[_Child], stop: StopRequest, timeout_s: float, kills: int) -> None:
    """Wait until all ranks have ended, or until one has failed and the others have had time to report."""
    stop.immediate = False
    deadline: float | None = None
    all_stopped_since: float | None = None
    was_forwarded = False
    while any(child.outcome is None for child in children):
        waiting = [child.connection for child in children if child.outcome is None]
        for connection in wait(waiting, timeout=0.1):
            child = next(child for child in children if child.connection is connection)
            try:
                child.outcome = child.connection.recv()
            except (EOFError, OSError):
                child.process.join(timeout=5)
                child.outcome = Outcome(child.rank.rank, failure=_describe_exit(child.process, kills))
        if stop.signum is not None and not was_forwarded:
            was_forwarded = True
            deadline = time.monotonic() + _INTERRUPT_GRACE_S
            for child in children:
                if child.process.is_alive() and child.process.pid is not None:
                    os.kill(child.process.pid, signal.SIGTERM)
                    if hasattr(signal, "SIGCONT"):
                        os.kill(child.process.pid, signal.SIGCONT)  # a stopped process handles no signals
        if deadline is None and any(child.outcome is not None and child.outcome.failure for child in children):
            deadline = time.monotonic() + _GRACE_S
        # If one rank is stopped, the others time out. If all are stopped, only the launcher can notice.
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


def _describe_exit(process: BaseProcess, kills: int) -> RankFailure:
    """Describe the end of a process that sent no Outcome.

    Args:
        kills: the value of `out_of_memory_kills()` when the process started.
    """
    code = process.exitcode
    ending = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exited with {code}"
    if code == -getattr(signal, "SIGKILL", 9) and out_of_memory_kills() > kills:
        ending += " while the system was out of memory: try a smaller training.batch_size, or fewer ranks"
    if code == -getattr(signal, "SIGBUS", 7):
        ending += ": its memory-mapped file was truncated, or the disk failed (dataset.pipeline=mapped)"
    return RankFailure.died(ending)


def _end(children: list[_Child]) -> None:
    """End all processes, and remove the shared memory that killed processes have left behind."""
    for child in children:
        if child.outcome is not None and child.outcome.failure is None:
            child.process.join(timeout=5)
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
        child.connection.close()
    for child in children:
        if child.process.pid is not None and child.process.exitcode:
            shared_memory.unlink_leftover_memory(child.process.pid)


def _exited_without_report(child: _Child) -> bool:
    """Whether a rank ended without a report, or was killed because it was stuck."""
    return child.outcome is None or _cause(child) is Cause.DIED


def _root_cause(failed: list[_Child], timeout_s: float) -> BaseException:
    """Return the error of the rank that failed first. Its end makes the other ranks fail, too."""
    child = min(failed, key=_cause)
    number = child.rank.rank
    if child.outcome is None or child.outcome.failure is None:
        message = f"rank {number} did not respond within strategy.timeout_s={timeout_s}"
        return RankFailed(message, RunError(type="RankStuck", message=message, rank=number))
    return child.outcome.failure.as_exception(number)


def _cause(child: _Child) -> Cause:
    failure = None if child.outcome is None else child.outcome.failure
    return Cause.STUCK if failure is None else failure.cause
