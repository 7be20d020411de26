"""The code of a rank process: it pins itself to its cores, joins the process group and trains."""

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch.distributed as dist
from msgspec import UNSET

from laptime.config.schema import Config
from laptime.ranks import torchrun
from laptime.ranks.failures import RankFailure
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import stop_on_signals
from laptime.record.masking import secret_values
from laptime.record.run_record import RunRecord, mark_launcher_died
from laptime.runner.context import RunContext, SweepContext
from laptime.runner.train import train
from laptime.terminal import logging_to

log = logging.getLogger(__name__)

# Maximum time for the first rank to record in run.json that the launcher has died.
_FINAL_WRITE_S = 2.0
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class Rendezvous:
    """The address where the ranks of a process group find each other.

    Attributes:
        host, port: the address of the TCPStore.
        backend: the process group's backend, e.g. gloo.
        timeout_s: seconds to wait for the other ranks.
    """

    host: str
    port: int
    backend: str
    timeout_s: float


@dataclass(frozen=True)
class Job:
    """The values that the launcher sends to a rank process at its start. All of them can be pickled.

    Attributes:
        config: the resolved configuration.
        run_dir: the absolute path of the run directory, which exists.
        record: the record of the run so far.
        rank: this rank.
        rendezvous: the address where the ranks find each other; None: a single process without a process group.
        start: `time.time()` when the run began.
        sweep: the sweep that the run belongs to; None: a single run.
        variables: environment variables; those of the forkserver may be out of date.
    """

    config: Config
    run_dir: Path
    record: RunRecord
    rank: Rank
    rendezvous: Rendezvous | None
    start: float
    sweep: SweepContext | None
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a rank ended.

    Attributes:
        rank: the number of the rank.
        record: the run's record, from the first rank only; None after a failure.
        failure: how the rank failed; None: it completed.
    """

    rank: int
    record: RunRecord | None = None
    failure: RankFailure | None = None


def main(connection: Connection, job: Job) -> None:
    """Train as one rank, send the Outcome, and end the process."""
    os.environ.clear()
    os.environ.update(job.variables)
    _end_with_the_launcher(connection, job)
    with logging_to(job.run_dir, job.rank.rank, secrets=secret_values(job.config.as_dict())):
        try:
            with stop_on_signals() as stop:
                job.rank.apply_affinity()
                if job.rendezvous is not None:
                    join(job.rank, job.rendezvous)
                run = RunContext(job.config, job.run_dir, job.record, stop, job.start, job.sweep)
                train(run, job.rank)
            connection.send(Outcome(job.rank.rank, record=job.record if job.rank.is_first else None))
        except BaseException as error:
            failure = RankFailure.of(error)
            if failure.error.traceback is not UNSET:
                log.debug("%s", failure.error.traceback)
            connection.send(Outcome(job.rank.rank, failure=failure))
    sys.stdout.flush()
    # Skip Python's shutdown: threads of a process group whose other ranks have ended can block it.
    os._exit(0)


def join(rank: Rank, rendezvous: Rendezvous) -> None:
    """Make the process group with the other ranks."""
    timeout = timedelta(seconds=rendezvous.timeout_s)
    # The loopback interface keeps other machines from connecting to the ranks.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = LOOPBACK
    store = dist.TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timeout)
    dist.init_process_group(
        rendezvous.backend,
        store=dist.PrefixStore(f"attempt {rank.attempt}", store),
        rank=rank.rank,
        world_size=rank.world_size,
        timeout=timeout,
    )


def join_torchrun(backend: str, timeout_s: float) -> None:
    """Make the process group of ranks that torchrun has started.

    On one machine the ranks use the loopback interface. On several machines they use the interface towards the first
    machine, unless GLOO_SOCKET_IFNAME is set. By default gloo (torch 2.14; not reported) would use the address that the
    host name resolves to, often 127.0.1.1.
    """
    if torchrun.num_nodes() == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    elif (interface := interface_towards(os.environ["MASTER_ADDR"])) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    # A prefix per attempt: in torch 2.14 restarted ranks can read the addresses of the ranks before (not reported).
    store = dist.PrefixStore(f"group {torchrun.attempt()}", torchrun.store(timeout_s))
    dist.init_process_group(
        backend,
        store=store,
        rank=torchrun.rank(),
        world_size=torchrun.world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def interface_towards(host: str) -> str | None:
    """Return the network interface from which this machine sends to a host; None: unknown, or only the loopback."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # UDP: sends nothing
            source_address = probe.getsockname()[0].partition("%")[0]
    except OSError:
        return None
    if ipaddress.ip_address(source_address).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(interface.address.partition("%")[0] == source_address for interface in addresses):
            return name
    return None


def _end_with_the_launcher(connection: Connection, job: Job) -> None:
    """End this rank immediately when the launcher dies; the first rank records that in run.json."""

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            connection.recv()

    def kill_other_ranks() -> None:
        # A stopped rank would not notice that the launcher has died. The first rank gets time to write run.json.
        if not job.rank.is_first:
            time.sleep(_FINAL_WRITE_S)
        strategy = job.record.strategy
        for pid in (strategy.rank_pids if strategy is not None else None) or []:
            if pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()

    _end_after(wait, job.rank, job.run_dir, kill_other_ranks)


def end_with_torchrun(rank: Rank, run_dir: Path) -> None:
    """End this rank when torchrun dies, which changes the rank's parent process."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)

    _end_after(wait, rank, run_dir)


def _end_after(
    wait: Callable[[], None], rank: Rank, run_dir: Path, kill_others: Callable[[], None] | None = None
) -> None:
    def watch() -> None:
        wait()
        try:
            if rank.is_first:
                mark_launcher_died(run_dir, "the process that launched the ranks has died")
        finally:  # even if run.json can't be written
            if kill_others is not None:
                kill_others()
            os._exit(1)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()
