"""Joining ranks that torchrun (or another elastic agent) has started, on one machine or many.

Each of them runs the whole command, so they first agree on one run directory: the first rank's. A restart by
torchrun's own --max-restarts finds it again, and goes on from its last checkpoint.
"""

import contextlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from laptime.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

    from laptime.ranks import Rank


def is_joined() -> bool:
    """Whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    return int(os.environ["RANK"])


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def local_world_size() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"])


def num_nodes() -> int:
    """Machines, or what stands for them: one torchrun each."""
    return int(os.environ["GROUP_WORLD_SIZE"])


def this_rank(threads_per_rank: int | str, usable_cores: int) -> "Rank":
    """This process among the ranks.

    Args:
        threads_per_rank: a number, or auto: this machine's cores shared among its ranks.
        usable_cores: that this process may use.
    """
    from laptime.ranks import Rank

    local = local_world_size()
    threads = max(1, usable_cores // local) if isinstance(threads_per_rank, str) else threads_per_rank
    return Rank(
        rank=rank(),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=world_size(),
        threads=threads,
        oversubscribed=local * threads > usable_cores,
        attempt=attempt(),
        node=int(os.environ["GROUP_RANK"]),
        num_nodes=num_nodes(),
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
    agreed.wait(["run_dir"])
    run_dir = bytes(agreed.get("run_dir")).decode()
    if not run_dir:
        raise UserError("the first rank could not make its run directory; see its message.")
    return run_dir


def report(error: dict[str, Any], timeout_s: float) -> None:
    """Tell the first rank, which keeps the record, why this one failed; the first report stays."""
    with contextlib.suppress(RuntimeError, OSError):
        store(timeout_s).compare_set(f"error {attempt()}", "", json.dumps(error | {"rank": rank()}))


def reported(timeout_s: float) -> dict[str, Any] | None:
    """What a rank of this attempt has reported; None: nothing."""
    with contextlib.suppress(RuntimeError, OSError):
        reports = store(timeout_s)
        if reports.check([f"error {attempt()}"]):
            error: dict[str, Any] = json.loads(bytes(reports.get(f"error {attempt()}")))
            return error
    return None


def store(timeout_s: float) -> "Store":
    """torchrun's own store: it outlives the ranks, so a restarted one reads there what the first attempt wrote."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tcp = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    return PrefixStore(f"laptime {os.environ['TORCHELASTIC_RUN_ID']}", tcp)
