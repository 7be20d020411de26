"""What happens inside a rank that Laptime started: a fresh process, on its cores, in its process group."""

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

# How long the first rank may take to write down that the launcher is gone.
_FINAL_WRITE_S = 2.0
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a group meet.

    Attributes:
        host, port: of the store.
        backend: gloo or nccl.
        timeout_s: how long to wait for the others.
    """

    host: str
    port: int
    backend: str
    timeout_s: float


@dataclass(frozen=True)
class Job:
    """What a rank is told when it starts; everything in it can be pickled.

    Attributes:
        config: of the run.
        run_dir: absolute; exists.
        record: of the run, as known so far.
        rank: which one this is.
        rendezvous: where the ranks meet; None: a plain process without a group.
        start: `time.time()` when the run began.
        sweep: that the run belongs to; None: a run by itself.
        variables: of the environment; the process that a rank is a copy of may have started with others.
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
        rank: which one.
        record: of the run, from the first rank when it completed.
        failure: None: it has completed.
    """

    rank: int
    record: RunRecord | None = None
    failure: RankFailure | None = None


def main(connection: Connection, job: Job) -> None:
    """Train as one rank and send the Outcome; ends the process."""
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
    # Without Python's own shutdown: threads of a process group whose other ranks are gone can block it.
    os._exit(0)


def join(rank: Rank, rendezvous: Rendezvous) -> None:
    """Meet the other ranks and make the process group."""
    timeout = timedelta(seconds=rendezvous.timeout_s)
    # Ranks of one machine talk over the loopback interface: nobody else is to reach them.
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

    On one machine they talk over the loopback interface; on several over the one that leads to the first, unless
    GLOO_SOCKET_IFNAME names another. Left to itself gloo takes what this machine's name resolves to, often 127.0.1.1.
    """
    if torchrun.num_nodes() == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    elif (interface := interface_towards(os.environ["MASTER_ADDR"])) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    # Under a name of this attempt's own: restarted ranks have been seen to read the addresses of those before.
    store = dist.PrefixStore(f"group {torchrun.attempt()}", torchrun.store(timeout_s))
    dist.init_process_group(
        backend,
        store=store,
        rank=torchrun.rank(),
        world_size=torchrun.world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def interface_towards(host: str) -> str | None:
    """The network interface whose address this machine would send from; None where there is none but the loopback."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as asked:
            asked.connect(address)  # sends nothing
            own = asked.getsockname()[0].partition("%")[0]
    except OSError:
        return None
    if ipaddress.ip_address(own).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            return name
    return None


def _end_with_the_launcher(connection: Connection, job: Job) -> None:
    """Nobody would wait for ranks whose launcher is gone: they end at once, and the first one says so in run.json."""

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            connection.recv()

    def end_those_that_cannot() -> None:
        """A stopped rank does not notice that the launcher is gone. The first rank has a moment to write it down."""
        if not job.rank.is_first:
            time.sleep(_FINAL_WRITE_S)
        strategy = job.record.strategy
        for pid in (strategy.rank_pids if strategy is not None else None) or []:
            if pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()

    _end_after(wait, job.rank, job.run_dir, end_those_that_cannot)


def end_with_torchrun(rank: Rank, run_dir: Path) -> None:
    """The same for ranks that torchrun has started: its death gives them another parent."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)

    _end_after(wait, rank, run_dir)


def _end_after(wait: Callable[[], None], rank: Rank, run_dir: Path, others: Callable[[], None] | None = None) -> None:
    def watch() -> None:
        wait()
        try:
            if rank.is_first:
                mark_launcher_died(run_dir, "the process that launched the ranks is gone")
        finally:  # whether or not it could be written
            if others is not None:
                others()
            os._exit(1)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()
