"""Joins the ranks that torchrun (or another elastic agent) has started, on one machine or several.

Each rank runs the whole command, so they first agree on one run directory: rank 0's. If torchrun restarts ranks
(--max-restarts), they find this directory and resume from its last checkpoint.
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
from laptime.machine.hardware import allowed_cores
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
# Keys that may differ between nodes: paths, and settings that only rank 0 uses.
_PER_NODE_KEYS = ("dataset.root", "training.checkpoint", "logger.")


def is_joined() -> bool:
    """Whether torchrun started this process, i.e. all its variables are set. If only some are, they are leftovers."""
    return all(name in os.environ for name in _VARIABLES)


def rank() -> int:
    return int(os.environ["RANK"])


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def local_world_size() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"])


def num_nodes() -> int:
    """Return the number of torchrun agents, normally one per machine."""
    return int(os.environ["GROUP_WORLD_SIZE"])


def command(rank_command: Sequence[str]) -> list[str]:
    """Return the torchrun command that the user probably typed.

    Args:
        rank_command: the command of one rank. It begins with `laptime` or a Python interpreter.
    """
    script = ["--no-python", *rank_command] if rank_command[0] == "laptime" else list(rank_command[1:])
    while script and script[0].startswith("-") and script[0] not in ("-m", "-c", "--no-python"):
        script = script[1:]
    per_node = ["--nproc-per-node", str(local_world_size())]
    return ["torchrun", *(["--nnodes", str(num_nodes())] if num_nodes() > 1 else []), *per_node, *script]


@dataclass(frozen=True)
class Peer:
    """What a rank sends to the other ranks at the rendezvous.

    Attributes:
        host: a text that is equal for ranks that may use the same cores of a machine, even if several torchruns started
            them.
        usable_cores: number of cores that its process may use.
        differences: keys of its configuration that differ from rank 0's, each with both values.
    """

    host: str
    usable_cores: int
    differences: list[str]


def rendezvous(config: Mapping[str, Any], usable_cores: int, timeout_s: float) -> list[Peer]:
    """Wait until all ranks of this attempt have joined. Call it before they make a process group.

    Returns:
        All ranks, in their order.

    Raises:
        UserError: the ranks' configurations differ.
        RankFailed: some ranks have not joined within `timeout_s`.
    """
    shared, number, ranks = store(timeout_s), attempt(), range(world_size())
    settings = {name: value for name, value in flat(config) if not name.startswith(_PER_NODE_KEYS)}
    if rank() == 0:
        shared.set(f"config {number}", json.dumps(settings))
    _wait_for(shared, [f"config {number}"], ["rank 0"], timeout_s)
    first = json.loads(bytes(shared.get(f"config {number}")))
    this = json.loads(json.dumps(settings))
    differences = [
        f"{key} {first.get(key)} on rank 0, {this.get(key)} on rank {rank()}"
        for key in dict.fromkeys([*first, *this])
        if first.get(key) != this.get(key)
    ]
    keys = [f"peer {number} {peer}" for peer in ranks]
    shared.set(keys[rank()], json.dumps(asdict(Peer(_host(), usable_cores, differences))))
    _wait_for(shared, keys, [f"rank {peer}" for peer in ranks], timeout_s)
    peers = [Peer(**json.loads(bytes(shared.get(key)))) for key in keys]
    differences = [difference for peer in peers for difference in peer.differences]
    if differences:
        raise UserError(
            f"torchrun started the ranks with different settings: {join_first_three(differences)}. "
            "Start the same command on every node."
        )
    return peers


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    cores = sorted(allowed_cores())
    return f"{socket.gethostname()} {boot} {cores}"


def _wait_for(shared: "Store", keys: list[str], ranks: list[str], timeout_s: float) -> None:
    """Wait until the store has all keys. The error names the ranks that have not set theirs."""
    from torch.distributed import DistError

    try:
        shared.wait(keys)
    except (DistError, RuntimeError) as error:
        missing = [name for key, name in zip(keys, ranks, strict=True) if not shared.check([key])]
        message = f"{', '.join(missing)} did not join within strategy.timeout_s={timeout_s}"
        raise RankFailed(message, RunError(type="RankStuck", message=message)) from error


def this_rank(threads_per_rank: int | str, peers: Sequence[Peer]) -> "Rank":
    """Return the Rank of this process.

    Args:
        threads_per_rank: a number; or auto, which divides this machine's cores among all its ranks, including those of
            other torchruns.
        peers: all ranks.
    """
    from laptime.ranks.rank import Rank

    this = peers[rank()]
    on_this_host = [number for number, peer in enumerate(peers) if peer.host == this.host]
    threads = max(1, this.usable_cores // len(on_this_host)) if isinstance(threads_per_rank, str) else threads_per_rank
    return Rank(
        rank=rank(),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=world_size(),
        threads=threads,
        oversubscribed=len(on_this_host) * threads > this.usable_cores,
        attempt=attempt(),
        node=int(os.environ["GROUP_RANK"]),
        num_nodes=num_nodes(),
        core_slot=on_this_host.index(rank()),
    )


def attempt() -> int:
    """Return how often torchrun has restarted the ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def agree_on_run_dir(reserve: Callable[[], str], timeout_s: float) -> str:
    """Return the run directory that all ranks use, also after a restart.

    Args:
        reserve: makes the directory and returns its path; only rank 0 of the first attempt calls it.
        timeout_s: seconds to wait for rank 0.

    Raises:
        UserError: rank 0 could not make the directory.
    """
    shared = store(timeout_s)
    if rank() == 0 and not shared.check(["run_dir"]):
        try:
            shared.set("run_dir", reserve())
        except Exception:
            shared.set("run_dir", "")  # so that the others stop waiting
            raise
    try:
        _wait_for(shared, ["run_dir"], ["rank 0"], timeout_s)
    except RankFailed as error:
        raise UserError(f"{error}. Start torchrun with the same command on every node.") from error
    run_dir = bytes(shared.get("run_dir")).decode()
    if not run_dir:
        raise UserError("rank 0 could not make the run directory; see its error message.")
    return run_dir


def report(failure: RankFailure, timeout_s: float) -> Report:
    """Report to the other ranks why this rank failed.

    Returns:
        The report that came first: this one, or an earlier one of another rank.
    """
    this = Report(rank(), failure)
    with contextlib.suppress(RuntimeError, OSError):
        store(timeout_s).compare_set(f"error {attempt()}", "", msgspec.json.encode(this).decode())
    return first_report(timeout_s) or this


def first_report(timeout_s: float) -> Report | None:
    """Return the first report of this attempt's ranks; None: none has reported."""
    with contextlib.suppress(RuntimeError, OSError):
        reports = store(timeout_s)
        if reports.check([f"error {attempt()}"]):
            return msgspec.json.decode(bytes(reports.get(f"error {attempt()}")), type=Report)
    return None


def post_exit(failure: RankFailure | None, timeout_s: float) -> None:
    """Report to the other ranks that this rank exits, after it completed (None) or failed."""
    with contextlib.suppress(RuntimeError, OSError):
        content = msgspec.json.encode(Report(rank(), failure)).decode()
        store(timeout_s).set(f"ended {attempt()} {rank()}", content)


def collect_exits(wait_s: float, timeout_s: float) -> dict[int, RankFailure | None]:
    """Return the exits that ranks reported with `post_exit`, by rank.

    Ranks without a report within `wait_s` are left out: they were killed, are stuck, or their machine is down.

    Raises:
        RuntimeError, OSError: torchrun has ended, and its store with it.
    """
    exits: dict[int, RankFailure | None] = {}
    shared = store(timeout_s)
    deadline = time.monotonic() + wait_s
    while len(exits) < world_size() and time.monotonic() < deadline:
        for number in set(range(world_size())) - set(exits):
            if shared.check([f"ended {attempt()} {number}"]):
                content = bytes(shared.get(f"ended {attempt()} {number}"))
                exits[number] = msgspec.json.decode(content, type=Report).failure
        time.sleep(0.05)
    return exits


def store(timeout_s: float) -> "Store":
    """Return torchrun's own store. It outlives the ranks, so restarted ranks can read what the first attempt wrote."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tcp = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    return PrefixStore(f"laptime {os.environ['TORCHELASTIC_RUN_ID']}", tcp)
