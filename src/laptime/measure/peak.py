"""The peak of a device: the fastest matrix product and the fastest memory copy, measured by a short probe.

All ranks run it concurrently, with their threads and cores, so the peak is that of the resources of the run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from laptime.machine.device import Device
from laptime.ranks.rank import Rank

# Sizes of square matrices. The size grows until a product takes longer than _LONG_PRODUCT_S.
_SMALLEST, _LARGEST = 256, 16384
_LONG_PRODUCT_S = 0.002
_PER_SIZE_S = 0.015
# Two buffers of this size exceed the caches of nearly every processor.
_COPIED_BYTES = 2**25
_COPY_S = 0.02

# The dtype of matrix products by precision, first for Laptime's own training, then for any Lightning Trainer.
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRAINER_DTYPES = DTYPES | {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


@dataclass(frozen=True)
class Peak:
    """The peak of all ranks together.

    Attributes:
        matmul_flop_per_s: FLOP/s of the fastest matrix product.
        copy_bytes_per_s: bytes read plus bytes written per second, in a copy within the device's memory.
    """

    matmul_flop_per_s: float
    copy_bytes_per_s: float


def probe(device: Device, precision: str, rank: Rank, cores_per_thread: float = 1.0) -> Peak:
    """Measure the peak of all ranks, which run the probe concurrently.

    Args:
        device: the device of this rank.
        precision: one of TRAINER_DTYPES. float32 products follow `torch.set_float32_matmul_precision`.
        rank: this process.
        cores_per_thread: the number of cores for each thread, which is below 1 if ranks share cores.

    Source: a copy counts bytes read and written, as in STREAM (McCalpin 1995).
    """
    rank.barrier()
    peak = probe_alone(device, precision, cores_per_thread)
    return Peak(*rank.all_reduce_sum([peak.matmul_flop_per_s, peak.copy_bytes_per_s]))


def probe_alone(device: Device, precision: str, cores_per_thread: float = 1.0) -> Peak:
    """Measure the peak of this rank. It uses its own random generator, so torch's global ones are not changed.

    Args:
        device, precision, cores_per_thread: the arguments of `probe`.
    """
    with torch.no_grad():
        matmul, copy = _matmul_flop_per_s(device, TRAINER_DTYPES[precision]), _copy_bytes_per_s(device)
    fraction = min(1.0, cores_per_thread)
    return Peak(fraction * matmul, fraction * copy)


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
    """Return the seconds of the fastest repetition within `for_s`. At least three are timed, after an untimed one."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < for_s:
        device.synchronize()
        before = time.perf_counter()
        work()
        device.synchronize()
        times.append(time.perf_counter() - before)
    return min(times)
