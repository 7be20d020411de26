"""Lightning's DDP on the ranks that Laptime has started, for modules that train as their authors wrote them."""

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laptime.ranks import comm_hooks
from laptime.ranks.rank import Rank


class RanksDDP(DDPStrategy):
    """DDP on a process group that exists before the Trainer.

    Unlike in RankStrategy, Lightning sees all ranks: it splits the data with a DistributedSampler and averages logged
    metrics, and the module's own code reads its rank.

    Args:
        device: this rank's device.
        rank: this process.
        ddp: arguments of DistributedDataParallel.
        comm_hook: how ranks exchange gradients: none, fp16, bf16, powersgd or shared_memory.
        timeout_s: seconds that the hook waits for another rank.
    """

    def __init__(self, device: torch.device, rank: Rank, ddp: dict[str, Any], comm_hook: str, timeout_s: float) -> None:
        super().__init__(cluster_environment=_JoinedRanks(rank), process_group_backend=dist.get_backend(), **ddp)
        self.device = device
        self.rank = rank
        self.comm_hook = comm_hook
        self.timeout_s = timeout_s

    @property
    def root_device(self) -> torch.device:
        return self.device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.rank.world_size, "rank": self.rank.rank}

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        wrapped = super()._setup_model(model)
        comm_hooks.register(self.comm_hook, wrapped, self.rank, self.timeout_s)
        return wrapped

    def on_exception(self, exception: BaseException) -> None:
        """Do nothing: Lightning would advise arguments of its own strategies. See `laptime.training.faults`."""


class _JoinedRanks(LightningEnvironment):
    """Tells Lightning which rank this process is."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self.rank.world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the process group has its size already."""

    def global_rank(self) -> int:
        return self.rank.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: Laptime has chosen the rank."""

    def local_rank(self) -> int:
        return self.rank.local_rank

    def node_rank(self) -> int:
        return self.rank.node

    def teardown(self) -> None:
        """Do nothing: the ranks go on after the training."""
