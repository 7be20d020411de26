"""DDP's communication hooks: how ranks average their gradients, and how much they send."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from laptime.ranks.rank import Rank
from laptime.ranks.shared_memory import SharedMemory, average_bucket

AllReduce = tuple[int, torch.dtype]  # number of elements and their type


def register(comm_hook: str, ddp: DistributedDataParallel, rank: Rank, timeout_s: float) -> None:
    """Register the communication hook that `strategy.comm_hook` names with DDP.

    Args:
        comm_hook: none, fp16, bf16, powersgd or shared_memory.
        ddp: the wrapped network, which must not have taken a step yet.
        rank: this process.
        timeout_s: seconds to wait for another rank.

    Raises:
        UserError: the hook is shared_memory, and the ranks are not on one machine.
    """
    if comm_hook == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif comm_hook == "bf16":
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif comm_hook == "powersgd":
        # The first steps average uncompressed gradients, which change most then (Vogels, Karimireddy and Jaggi 2019).
        state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=4, start_powerSGD_iter=10)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif comm_hook == "shared_memory":
        ddp.register_comm_hook(SharedMemory(rank, timeout_s), average_bucket)


def shared_memory(ddp: DistributedDataParallel) -> SharedMemory | None:
    """The state of the shared_memory hook; None: `ddp` has another hook or none."""
    # _comm_hooks is private; torch 2.14 has no public list of hooks. Not reported upstream.
    return next((state for _, state in ddp._comm_hooks if isinstance(state, SharedMemory)), None)


def comm_times(ddp: DistributedDataParallel) -> dict[str, float]:
    """Return the communication times of the previous step, in seconds.

    Returns:
        `comm` is the time from the start of the first all-reduce to the end of the last. `overlap` is the part of that
        time in which the backward pass was still computing gradients. Both come from DDP's own timers, which are 0
        after the first step. Those timers don't see the shared_memory hook, so its time is measured here. It never
        overlaps with computing.
    """
    if (shared := shared_memory(ddp)) is not None:
        return {"comm": shared.last_step_s, "overlap": 0.0}
    timers = ddp._get_ddp_logging_data()  # private; torch 2.14 has no public one. Not reported upstream.
    names = {"comm": "backward_comm_time", "overlap": "backward_compute_comm_overlap_time"}
    return {name: timers.get(key, 0) / 1e9 for name, key in names.items()}


def waiting_s(times: Mapping[str, float]) -> float:
    """Return the seconds of `comm_times` in which the rank only communicated."""
    return max(0.0, times["comm"] - times["overlap"])


def bucket_bytes(ddp: DistributedDataParallel) -> list[int]:
    """Return the sizes of DDP's buckets. A step averages each bucket in one all-reduce."""
    logged = ddp._get_ddp_logging_data()
    sizes = str(logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"])  # "1052672, 1090600"
    return [int(size) for size in sizes.split(",")]


def isolated_all_reduce(
    ddp: DistributedDataParallel, sent: list[AllReduce], device: torch.device
) -> Callable[[], None]:
    """Return a function that only communicates. It sends as much as one step does, with the same hook.

    Args:
        ddp: the wrapped network, whose hook is registered.
        sent: the all-reduces of one step.
        device: the device that holds the gradients.
    """
    buffers = [torch.zeros(size, dtype=dtype, device=device) for size, dtype in sent]
    shared = shared_memory(ddp)

    def all_reduce() -> None:
        if shared is not None:
            for number, buffer in enumerate(buffers):
                shared.average(buffer, f"isolated {number}")
            return
        for work in [dist.all_reduce(buffer, async_op=True) for buffer in buffers]:
            assert work is not None
            work.wait()

    return all_reduce


@contextmanager
def record_all_reduces(ddp: DistributedDataParallel) -> Iterator[list[AllReduce]]:
    """Record the all-reduces of the one optimizer step that runs in this context.

    Communication hooks in Python call `dist.all_reduce`, some of them in a thread of the process group. Without a hook,
    DDP all-reduces its gradient buckets in C++.
    """
    sent: list[AllReduce] = []
    original = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append((tensor.numel(), tensor.dtype))
        return original(tensor, *args, **kwargs)

    # torch 2.14 has no hook that sees the all-reduces of all threads. Not reported upstream.
    dist.all_reduce = all_reduce
    try:
        yield sent
    finally:
        dist.all_reduce = original
    if not sent:
        dtype = next(parameter.dtype for parameter in ddp.parameters() if parameter.requires_grad)
        sent += [(-(-num_bytes // dtype.itemsize), dtype) for num_bytes in bucket_bytes(ddp)]
