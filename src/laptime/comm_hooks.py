"""How gradients travel between the ranks: DDP's communication hooks, and what they send."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

AllReduce = tuple[int, torch.dtype]  # number of elements, and what they are


def register(comm_hook: str, ddp: DistributedDataParallel) -> None:
    """Let DDP compress the gradients on their way.

    Args:
        comm_hook: none, fp16, bf16 or powersgd.
        ddp: has taken no step yet.
    """
    if comm_hook == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif comm_hook == "bf16":
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif comm_hook == "powersgd":
        # Plain averaging for the first steps, while the gradients change most (Vogels, Karimireddy and Jaggi 2019).
        state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=4, start_powerSGD_iter=10)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


@contextmanager
def watching_all_reduces(ddp: DistributedDataParallel) -> Iterator[list[AllReduce]]:
    """Fill a list with what one optimizer step within this context sends.

    Hooks written in Python call `dist.all_reduce`, some in threads of the process group; without one, DDP sends each
    of its buckets as it is.
    """
    sent: list[AllReduce] = []
    real = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append((tensor.numel(), tensor.dtype))
        return real(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield sent
    finally:
        dist.all_reduce = real
    if not sent:
        dtype = next(parameter.dtype for parameter in ddp.parameters() if parameter.requires_grad)
        logged = ddp._get_ddp_logging_data()
        sizes = str(logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"])  # bytes: "1052672, 1090600"
        sent += [(int(size) // dtype.itemsize, dtype) for size in sizes.split(",")]
