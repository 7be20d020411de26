"""The most that a device does: the fastest matrix product and the fastest copy of memory, by a short probe.

Run on all ranks at once, with their threads and cores, so that it is the peak of what the run could use.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from laptime.machine.device import Device
from laptime.ranks.rank import Rank

# Square products, larger and larger while one of them takes less than _LONG_PRODUCT_S.
_SMALLEST, _LARGEST = 256, 16384
_LONG_PRODUCT_S = 0.002
_PER_SIZE_S = 0.015
# Two of them are beyond the caches of nearly every processor.
_COPIED_BYTES = 2**25
_COPY_S = 0.02

# What products are computed in, by precision: those of Laptime's own training, and those of any Trainer of Lightning's.
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRAINER_DTYPES = DTYPES | {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


@dataclass(frozen=True)
class Peak:
    """What all ranks together can do at most.

    Attributes:
        matmul_flop_per_s: floating-point operations a second in the fastest matrix product.
        copy_bytes_per_s: bytes read and bytes written a second in a copy within the device's memory.
    """

    matmul_flop_per_s: float
    copy_bytes_per_s: float


def probe(device: Device, precision: str, rank: Rank, cores_per_thread: float = 1.0) -> Peak:
    """Measure the peak of all ranks, which probe at once.

    Args:
        device: of this rank.
        precision: one of TRAINER_DTYPES: what products are computed in; in float32 as
            `torch.set_float32_matmul_precision` says.
        rank: this process.
        cores_per_thread: below 1 where ranks share cores: each then takes them in turn, at full speed.

    Source: bytes of a copy are counted as in STREAM (McCalpin 1995), read and written.
    """
    rank.barrier()
    own = probe_alone(device, precision, cores_per_thread)
    return Peak(*rank.all_reduce_sum([own.matmul_flop_per_s, own.copy_bytes_per_s]))


def probe_alone(device: Device, precision: str, cores_per_thread: float = 1.0) -> Peak:
    """Measure the peak of this rank. Random numbers of its own leave torch's generators as they are.

    Args:
        device, precision, cores_per_thread: as for `probe`.
    """
    with torch.no_grad():
        matmul, copy = _matmul_flop_per_s(device, TRAINER_DTYPES[precision]), _copy_bytes_per_s(device)
    share = min(1.0, cores_per_thread)
    return Peak(share * matmul, share * copy)


def _matmul_flop_per_s(device: Device, dtype: torch.dtype) -> float:
    best, size = 0.0, _SMALLEST
    generator = torch.Generator(device.torch_device)
    while size <= _LARGEST:
        a, b = (torch.randn(size, size, device=device.torch_device, generator=generator).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        fastest_s = _fastest(device, partial(torch.mm, a, b, out=product), _PER_SIZE_S)
        best = max(best, 2 * size**3 / fastest_s)
        if fastest_s > _LONG_PRODUCT_S:
            break
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3  # 256, 384, 512, 768, 1024, ...
    return best


def _copy_bytes_per_s(device: Device) -> float:
    source = torch.ones(_COPIED_BYTES // 4, device=device.torch_device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _fastest(device, lambda: target.copy_(source), _COPY_S)


def _fastest(device: Device, work: Callable[[], object], for_s: float) -> float:
    """Seconds of the fastest of the repetitions that fit into `for_s`; three at least, one before them."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < for_s:
        device.synchronize()
        before = time.perf_counter()
        work()
        device.synchronize()
        times.append(time.perf_counter() - before)
    return min(times)
