"""Plans the ranks of a run, with their devices, threads and cores, and refuses what this machine can't do."""

import sys
from dataclasses import replace
from typing import Any

import torch

from laptime.config.identity import hashed_config
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.machine.device import available_accelerator, usable_cores
from laptime.machine.environment import settings_have_changed
from laptime.machine.hardware import allowed_cores
from laptime.ranks.rank import Rank
from laptime.runner.context import SweepContext


def backend_of(config: Config) -> str:
    """Return the process group's backend for this configuration on this machine: gloo, nccl or Intel's xccl."""
    backend = config.strategy.backend
    if backend != "auto":
        return backend
    return {"cuda": "nccl", "xpu": "xccl"}.get(accelerator_of(config) or "", "gloo")


def num_ranks(config: Config) -> int:
    """Return the value of `strategy.world_size`. `auto` is one rank per GPU, or one rank on the CPU."""
    world_size = config.strategy.world_size
    if isinstance(world_size, int):
        return world_size
    return torch.accelerator.device_count() if accelerator_of(config) else 1


def threads_per_rank(config: Config, sweep: SweepContext | None = None) -> int:
    """Return the value of `strategy.threads_per_rank`, with `auto` resolved for this machine."""
    threads = config.strategy.threads_per_rank
    if isinstance(threads, int):
        return threads
    return max(1, usable_cores() // num_ranks(config)) if sweep is None else sweep.threads_per_rank


def expected_hashed_config(config: Config, sweep: SweepContext) -> dict[str, Any]:
    """Return the `hashed_config` that a run of a sweep will record on this machine."""
    threads = threads_per_rank(config, sweep)
    device = accelerator_of(config) or "cpu"
    return hashed_config(config, device, num_ranks(config), threads, runs_at_once=sweep.runs_at_once)


def plan(config: Config, sweep: SweepContext | None = None) -> list[Rank]:
    """Plan the ranks of a run, with their threads and cores.

    Args:
        sweep: the sweep that the run belongs to; None: a single run.

    Raises:
        UserError: this machine can't run them.
    """
    strategy = config.strategy
    world_size = num_ranks(config)
    check_devices(config, world_size, world_size)
    cores = usable_cores()
    threads = threads_per_rank(config, sweep)
    oversubscribed = world_size * threads > cores
    ranks = [
        Rank(
            rank=number,
            local_rank=number,
            core_slot=number,
            world_size=world_size,
            threads=threads,
            oversubscribed=oversubscribed,
        )
        for number in range(world_size)
    ]
    pin = strategy.pin_ranks and not trains_in_this_process(config, sweep)
    return [pinned(rank) for rank in ranks] if pin else ranks


def trains_in_this_process(config: Config, sweep: SweepContext | None) -> bool:
    """Whether the run trains in this process. It does with one rank, without DDP, and outside of a sweep.

    In a sweep, runs in one process would warm each other up.
    """
    # A memory-mapped file that is truncated kills the process that reads it. The launching process must survive to
    # report that, and with strategy.max_restarts to restart the rank.
    needs_supervisor = config.dataset.get("pipeline") == "mapped" or config.strategy.max_restarts > 0
    is_plain_rank = num_ranks(config) == 1 and not config.strategy.wrap_single_rank
    # In this process torch has already read the environment variables that libraries read while they load.
    return is_plain_rank and sweep is None and not needs_supervisor and not settings_have_changed()


def check_devices(config: Config, world_size: int, local_world_size: int) -> None:
    """Refuse what this machine's devices can't do.

    Args:
        world_size: the number of ranks.
        local_world_size: the number of ranks on this machine.
    """
    accelerator = accelerator_of(config)
    if accelerator == "mps" and world_size > 1:
        raise UserError(
            f"strategy.world_size={world_size}: a Mac has one MPS device, and gloo can't average tensors on it. "
            "Use device=cpu for several ranks, or strategy.world_size=1."
        )
    num_devices = torch.accelerator.device_count() if accelerator else 0
    if accelerator and local_world_size > num_devices:
        raise UserError(
            f"strategy.world_size={world_size}: each rank needs its own device, but this machine has {num_devices} "
            f"{accelerator} devices (after CUDA_VISIBLE_DEVICES, if set). Use fewer ranks or device=cpu."
        )
    if config.strategy.backend == "nccl" and accelerator != "cuda":
        raise UserError("strategy.backend=nccl: needs CUDA devices. Use strategy.backend=auto.")
    if config.strategy.comm_hook == "shared_memory":
        remedy = "Use strategy.comm_hook=none."
        if accelerator:
            raise UserError(
                f"strategy.comm_hook=shared_memory: works only with device=cpu, and gradients are on {accelerator}. "
                f"{remedy}"
            )
        if sys.platform != "linux":
            raise UserError(f"strategy.comm_hook=shared_memory: works only on Linux. {remedy}")


def accelerator_of(config: Config) -> str | None:
    """Return the accelerator that will train: cuda, mps or xpu; None: the CPU trains."""
    available = available_accelerator()
    return available if config.device.name in ("auto", "accelerator", available) else None


def pinned(rank: Rank) -> Rank:
    """Assign a rank its own cores of this machine, and return it.

    It gets no cores of its own if there are too few, or if the system can't pin processes. It gets none either if a CPU
    quota grants fewer cores than the affinity mask: containers with quotas would all pin to the same first cores.
    """
    affinity = sorted(allowed_cores())
    if rank.oversubscribed or len(affinity) != usable_cores():
        return rank
    return replace(rank, cores=tuple(affinity[rank.core_slot * rank.threads : (rank.core_slot + 1) * rank.threads]))
