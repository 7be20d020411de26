"""How gradients travel between the ranks: DDP's communication hooks, and what they send."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from laptime.ranks.rank import Rank
from laptime.ranks.shared_memory import SharedMemory, average_bucket

AllReduce = tuple[int, torch.dtype]  # number of elements, and what they are


def register(comm_hook: str, ddp: DistributedDataParallel, rank: Rank, timeout_s: float) -> None:
    """Let DDP compress the gradients on their way, or send them another way.

    Args:
        comm_hook: none, fp16, bf16, powersgd or shared_memory.
        ddp: has taken no step yet.
        rank: this process.
        timeout_s: how long to wait for another rank.

    Raises:
        UserError: shared_memory, and the ranks are not on one machine.
    """
    if comm_hook == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif comm_hook == "bf16":
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif comm_hook == "powersgd":
        # Plain averaging for the first steps, while the gradients change most (Vogels, Karimireddy and Jaggi 2019).
        state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=4, start_powerSGD_iter=10)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif comm_hook == "shared_memory":
        ddp.register_comm_hook(SharedMemory(rank, timeout_s), average_bucket)


def shared_memory(ddp: DistributedDataParallel) -> SharedMemory | None:
    """What its hook averages in; None: it has another one, or none."""
    return next((state for _, state in ddp._comm_hooks if isinstance(state, SharedMemory)), None)


def comm_times(ddp: DistributedDataParallel) -> dict[str, float]:
    """Of the step before, seconds: `comm` from the first all-reduce's start to the last one's end, and `overlap`, how
    many of them gradients were still computed in.

    By DDP's own clocks, which say 0 in the first step of all, as in ranks that were started again with nothing left to
    train. Averaging in shared memory is not seen by them: nothing happens beside it.
    """
    if (shared := shared_memory(ddp)) is not None:
        return {"comm": shared.last_step_s, "overlap": 0.0}
    clocks = ddp._get_ddp_logging_data()
    names = {"comm": "backward_comm_time", "overlap": "backward_compute_comm_overlap_time"}
    return {name: clocks.get(key, 0) / 1e9 for name, key in names.items()}


def exposed_s(times: Mapping[str, float]) -> float:
    """Of `comm_times`, the seconds in which nothing but communication happened."""
    return max(0.0, times["comm"] - times["overlap"])


def bucket_bytes(ddp: DistributedDataParallel) -> list[int]:
    """The sizes of DDP's buckets, each of which is one all-reduce of a step."""
    logged = ddp._get_ddp_logging_data()
    sizes = str(logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"])  # "1052672, 1090600"
    return [int(size) for size in sizes.split(",")]


def isolated_all_reduce(
    ddp: DistributedDataParallel, sent: list[AllReduce], device: torch.device
) -> Callable[[], None]:
    """What sends as much as one step does, with nothing around it, the way that this DDP's gradients go.

    Args:
        ddp: with its hook.
        sent: what one step sends.
        device: where the gradients are.
    """
    buffers = [torch.zeros(size, dtype=dtype, device=device) for size, dtype in sent]
    shared = shared_memory(ddp)

    def all_reduce() -> None:
        if shared is not None:
            for number, buffer in enumerate(buffers):
                shared.average(buffer, f"bare {number}")
            return
        for work in [dist.all_reduce(buffer, async_op=True) for buffer in buffers]:
            assert work is not None
            work.wait()

    return all_reduce


@contextmanager
def record_all_reduces(ddp: DistributedDataParallel) -> Iterator[list[AllReduce]]:
    """Fill a list with what one optimizer step within this context sends.

    Hooks written in Python call `dist.all_reduce`, some in threads of the process group; without one, DDP sends each
    of its buckets as it is.
    """
    sent: list[AllReduce] = []
    real = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append((tensor.numel(), tensor.dtype))
        return real(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce  # torch 2.14 lets nobody listen to the calls of all threads; not reported upstream
    try:
        yield sent
    finally:
        dist.all_reduce = real
    if not sent:
        dtype = next(parameter.dtype for parameter in ddp.parameters() if parameter.requires_grad)
        sent += [(-(-num_bytes // dtype.itemsize), dtype) for num_bytes in bucket_bytes(ddp)]
