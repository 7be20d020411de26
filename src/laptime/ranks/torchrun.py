"""Joining ranks that torchrun (or another elastic agent) has started, on one machine or many.

Each of them runs the whole command, so they first agree on one run directory: the first rank's. A restart by
torchrun's own --max-restarts finds it again, and goes on from its last checkpoint.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from laptime.errors import UserError
from laptime.ranks.failures import RankFailed, RankFailure, Report
from laptime.record.files import flat
from laptime.record.schema import RunError
from laptime.text import join_first_three

if TYPE_CHECKING:
    from torch.distributed import Store

    from laptime.ranks.rank import Rank


_VARIABLES = (
    "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def is_joined() -> bool:
    """Whether this process is a rank that torchrun started; some of its variables alone are left-overs."""
    return all(name in os.environ for name in _VARIABLES)


def rank() -> int:
    return int(os.environ["RANK"])


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def local_world_size() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"])


def num_nodes() -> int:
    """Machines, or what stands for them: one torchrun each."""
    return int(os.environ["GROUP_WORLD_SIZE"])


def command(typed: Sequence[str]) -> list[str]:
    """The torchrun command as far as a rank can tell. torchrun starts an interpreter with the script and its arguments.

    Args:
        typed: the command that started this rank.
    """
    script = ["--no-python", *typed] if typed[0] == "laptime" else list(typed[1:])
    while script and script[0].startswith("-") and script[0] not in ("-m", "-c", "--no-python"):
        script = script[1:]
    per_node = ["--nproc-per-node", str(local_world_size())]
    return ["torchrun", *(["--nnodes", str(num_nodes())] if num_nodes() > 1 else []), *per_node, *script]


@dataclass(frozen=True)
class Peer:
    """What a rank tells the others before they join.

    Attributes:
        host: the same for ranks that share the same cores of a machine, whether or not one torchrun has started them.
        usable_cores: that its process may use.
        differences: keys of its configuration that are not as the first rank's, each with both values.
    """

    host: str
    usable_cores: int
    differences: list[str]


def rendezvous(config: Mapping[str, Any], usable_cores: int, timeout_s: float) -> list[Peer]:
    """All ranks of this attempt, in their order, once every one has come; before they make a process group.

    Raises:
        UserError: their configurations differ: they would train something that nobody asked for.
        RankFailed: some have not come within `timeout_s`.
    """
    met, number, names = store(timeout_s), attempt(), range(world_size())
    own = {name: value for name, value in flat(config) if not name.startswith(PER_NODE_KEYS)}
    if rank() == 0:
        met.set(f"config {number}", json.dumps(own))
    _await(met, [f"config {number}"], ["rank 0"], timeout_s)
    first = json.loads(bytes(met.get(f"config {number}")))
    there = json.loads(json.dumps(own))
    differences = [
        f"{key} {first.get(key)} on rank 0, {there.get(key)} on rank {rank()}"
        for key in dict.fromkeys([*first, *there])
        if first.get(key) != there.get(key)
    ]
    keys = [f"peer {number} {each}" for each in names]
    met.set(keys[rank()], json.dumps(asdict(Peer(_host(), usable_cores, differences))))
    _await(met, keys, [f"rank {each}" for each in names], timeout_s)
    peers = [Peer(**json.loads(bytes(met.get(key)))) for key in keys]
    differences = [difference for peer in peers for difference in peer.differences]
    if differences:
        raise UserError(
            f"torchrun's ranks were started with different settings: {join_first_three(differences)}. "
            "Give every node the same command."
        )
    return peers


# What may differ from machine to machine: places, and what only the first rank does.
PER_NODE_KEYS = ("dataset.root", "training.checkpoint", "logger.")


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return f"{socket.gethostname()} {boot} {cores}"


def _await(met: "Store", keys: list[str], whose: list[str], timeout_s: float) -> None:
    from torch.distributed import DistError

    try:
        met.wait(keys)
    except (DistError, RuntimeError) as error:
        missing = [name for key, name in zip(keys, whose, strict=True) if not met.check([key])]
        message = f"{', '.join(missing)} did not come within strategy.timeout_s={timeout_s}"
        raise RankFailed(message, RunError(type="RankStuck", message=message)) from error


def this_rank(threads_per_rank: int | str, peers: Sequence[Peer]) -> "Rank":
    """This process among the ranks.

    Args:
        threads_per_rank: a number, or auto: this machine's cores shared among its ranks.
        peers: all ranks.

    Returns:
        The rank; several torchruns on one machine share its cores.
    """
    from laptime.ranks.rank import Rank

    own = peers[rank()]
    here = [number for number, peer in enumerate(peers) if peer.host == own.host]
    threads = max(1, own.usable_cores // len(here)) if isinstance(threads_per_rank, str) else threads_per_rank
    return Rank(
        rank=rank(),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=world_size(),
        threads=threads,
        oversubscribed=len(here) * threads > own.usable_cores,
        attempt=attempt(),
        node=int(os.environ["GROUP_RANK"]),
        num_nodes=num_nodes(),
        core_slot=here.index(rank()),
    )


def attempt() -> int:
    """How often torchrun has started the ranks before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def agree_on_run_dir(reserve: Callable[[], str], timeout_s: float) -> str:
    """The run directory of all ranks, the same after a restart.

    Args:
        reserve: makes the directory and returns its path; called on the first rank of the first attempt alone.
        timeout_s: how long to wait for the first rank.

    Raises:
        UserError: the first rank could not make it.
    """
    agreed = store(timeout_s)
    if rank() == 0 and not agreed.check(["run_dir"]):
        try:
            agreed.set("run_dir", reserve())
        except Exception:
            agreed.set("run_dir", "")  # the others are not to wait for what won't come
            raise
    try:
        _await(agreed, ["run_dir"], ["rank 0"], timeout_s)
    except RankFailed as error:
        raise UserError(f"{error}. Start torchrun on every node with the same command.") from error
    run_dir = bytes(agreed.get("run_dir")).decode()
    if not run_dir:
        raise UserError("the first rank could not make its run directory; see its message.")
    return run_dir


def report(failure: RankFailure, timeout_s: float) -> Report:
    """Tell the others why this rank failed.

    Returns:
        What was reported first: this, or what another rank has said before.
    """
    own = Report(rank(), failure)
    with contextlib.suppress(RuntimeError, OSError):
        store(timeout_s).compare_set(f"error {attempt()}", "", msgspec.json.encode(own).decode())
    return reported(timeout_s) or own


def reported(timeout_s: float) -> Report | None:
    """What a rank of this attempt has reported; None: nothing."""
    with contextlib.suppress(RuntimeError, OSError):
        reports = store(timeout_s)
        if reports.check([f"error {attempt()}"]):
            return msgspec.json.decode(bytes(reports.get(f"error {attempt()}")), type=Report)
    return None


def post_exit(failure: RankFailure | None, timeout_s: float) -> None:
    """Tell the others that this rank has ended by itself, completed (None) or not, and was not killed."""
    with contextlib.suppress(RuntimeError, OSError):
        own = msgspec.json.encode(Report(rank(), failure))
        store(timeout_s).set(f"ended {attempt()} {rank()}", own.decode())


def collect_exits(wait_s: float, timeout_s: float) -> dict[int, RankFailure | None]:
    """What the ranks said when they signed off, by rank; those that have said nothing within `wait_s` are left out:
    they were killed, are stuck, or their machine is gone.

    Raises:
        RuntimeError, OSError: torchrun's store is gone with torchrun: nothing can be told.
    """
    words: dict[int, RankFailure | None] = {}
    said = store(timeout_s)
    deadline = time.monotonic() + wait_s
    while len(words) < world_size() and time.monotonic() < deadline:
        for number in set(range(world_size())) - set(words):
            if said.check([f"ended {attempt()} {number}"]):
                words[number] = msgspec.json.decode(bytes(said.get(f"ended {attempt()} {number}")), type=Report).failure
        time.sleep(0.05)
    return words


def store(timeout_s: float) -> "Store":
    """torchrun's own store: it outlives the ranks, so a restarted one reads there what the first attempt wrote."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tcp = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    return PrefixStore(f"laptime {os.environ['TORCHELASTIC_RUN_ID']}", tcp)
