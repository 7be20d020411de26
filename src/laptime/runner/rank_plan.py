"""How many ranks a run has, with which devices, threads and cores, and what this machine can't do."""

import os
import sys
from dataclasses import replace
from typing import Any

import torch

from laptime.config.identity import hashed_config
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.machine.device import available_accelerator, usable_cores
from laptime.machine.environment import settings_have_changed
from laptime.ranks.rank import Rank
from laptime.runner.context import SweepContext


def backend_of(config: Config) -> str:
    """The communication library of this configuration on this machine: gloo, nccl or Intel's xccl."""
    backend = config.strategy.backend
    if backend != "auto":
        return backend
    return {"cuda": "nccl", "xpu": "xccl"}.get(accelerator_of(config) or "", "gloo")


def num_ranks(config: Config) -> int:
    """The number that `strategy.world_size` stands for: `auto` is a rank per GPU, one where the CPU trains."""
    world_size = config.strategy.world_size
    if isinstance(world_size, int):
        return world_size
    return torch.accelerator.device_count() if accelerator_of(config) else 1


def threads_per_rank(config: Config, sweep: SweepContext | None = None) -> int:
    """The number that `strategy.threads_per_rank` stands for."""
    threads = config.strategy.threads_per_rank
    if isinstance(threads, int):
        return threads
    return max(1, usable_cores() // num_ranks(config)) if sweep is None else sweep.threads_per_rank


def expected_hashed_config(config: Config, sweep: SweepContext) -> dict[str, Any]:
    """What the `hashed_config` of a run of a sweep will be on this machine."""
    threads = threads_per_rank(config, sweep)
    device = accelerator_of(config) or "cpu"
    return hashed_config(config, device, num_ranks(config), threads, runs_at_once=sweep.runs_at_once)


def plan(config: Config, sweep: SweepContext | None = None) -> list[Rank]:
    """Which ranks there will be, with how many threads and on which cores.

    Args:
        sweep: that the run belongs to; None: a run by itself.

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
    """Whether the run trains in this process: one plain rank, and no sweep whose runs would warm each other."""
    # A mapped file that becomes shorter ends the process that reads it: somebody must be left to say so, or, with
    # strategy.max_restarts, to start it again.
    may_end = config.dataset.get("pipeline") == "mapped" or config.strategy.max_restarts > 0
    wrapped = config.strategy.wrap_single_rank
    alone = num_ranks(config) == 1 and sweep is None and not wrapped
    return alone and not may_end and not settings_have_changed()  # which torch has read in this process


def check_devices(config: Config, world_size: int, local_world_size: int) -> None:
    """Refuse what the devices of this machine can't do: `world_size` ranks, `local_world_size` of them here."""
    accelerator = accelerator_of(config)
    if accelerator == "mps" and world_size > 1:
        raise UserError(
            f"strategy.world_size={world_size}: a Mac has one MPS device, and gloo can't average tensors on it. "
            "Use device=cpu for several ranks, or strategy.world_size=1."
        )
    num_devices = torch.accelerator.device_count() if accelerator else 0
    if accelerator and local_world_size > num_devices:
        raise UserError(
            f"strategy.world_size={world_size}: there are {num_devices} {accelerator} devices (that "
            "CUDA_VISIBLE_DEVICES leaves, if it is set), and each rank needs its own. Use fewer ranks or device=cpu."
        )
    if config.strategy.backend == "nccl" and accelerator != "cuda":
        raise UserError("strategy.backend=nccl: needs CUDA devices. Use strategy.backend=auto.")
    if config.strategy.comm_hook == "shared_memory":
        instead = "Use strategy.comm_hook=none."
        if accelerator:
            raise UserError(
                f"strategy.comm_hook=shared_memory: gradients on {accelerator} are not in memory that processes share. "
                f"{instead}"
            )
        if sys.platform != "linux":
            raise UserError(f"strategy.comm_hook=shared_memory: only on Linux can processes share it so. {instead}")


def accelerator_of(config: Config) -> str | None:
    """The accelerator that will train: cuda, mps or xpu; None: the CPU, as was asked or as what is left."""
    available = available_accelerator()
    return available if config.device.name in ("auto", "accelerator", available) else None


def pinned(rank: Rank) -> Rank:
    """The rank with its own part of this machine's cores.

    Without one where there are too few, where the system can't pin, and where a quota or an allocation grants fewer
    cores than the process may be put on: others, with quotas of their own, would all take the first of them.
    """
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if rank.oversubscribed or len(affinity) != usable_cores():
        return rank
    return replace(rank, cores=tuple(affinity[rank.core_slot * rank.threads : (rank.core_slot + 1) * rank.threads]))
