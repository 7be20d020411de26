"""The Trainer's strategy: each rank drives one device, DDP wraps the network, Laptime has started the processes."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laptime.errors import UserError
from laptime.ranks import comm_hooks
from laptime.ranks.rank import Rank
from laptime.training.capabilities import HasStepper, missing_attributes


class RankStrategy(SingleDeviceStrategy):
    """One rank of a process group that exists before the Trainer.

    Lightning's DDPStrategy wraps the whole module and expects one backward pass per training_step. Here a training_step
    takes several optimizer steps, so DDP wraps only the network. Lightning sees a single rank (`trainer.world_size` is
    1), because Lightning 2.6 deadlocks otherwise (not reported): before every batch and from its signal handler it
    broadcasts whether there was a SIGTERM, and a rank that is in another collective at that moment never returns.

    Args:
        device: this rank's device.
        rank: this process.
        ddp: arguments of DistributedDataParallel.
        comm_hook: how ranks exchange gradients: none, fp16, bf16, powersgd or shared_memory.
        timeout_s: seconds that the hook waits for another rank.
        shards: whether each rank updates only its shard of the weights, in the hook's shared memory.
    """

    def __init__(
        self,
        device: torch.device,
        rank: Rank,
        ddp: dict[str, Any],
        comm_hook: str,
        timeout_s: float,
        shards: bool,
    ) -> None:
        super().__init__(device)
        self.rank = rank
        self.ddp = ddp
        self.comm_hook = comm_hook
        self.timeout_s = timeout_s
        self.shards = shards
        self.global_rank = rank.rank
        self.local_rank = rank.local_rank

    @property
    def is_global_zero(self) -> bool:
        return self.rank.is_first

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING and self.rank.is_distributed:
            module = self.lightning_module
            if not isinstance(module, HasStepper):
                raise UserError(self._refusal(module))
            module.stepper.distribute(self._wrap)
            if self.shards:
                assert module.stepper.ddp is not None
                shared = comm_hooks.shared_memory(module.stepper.ddp)
                assert shared is not None
                module.stepper.shard(shared)

    def _refusal(self, module: object) -> str:
        world_size, reason = self.rank.world_size, missing_attributes(module, HasStepper)
        setting, alternative = f"world_size={world_size}", "world_size=1"
        if world_size == 1:
            setting, alternative = "wrap_single_rank=true", "wrap_single_rank=false"
        return f"strategy.{setting}: {reason}, so Laptime can't wrap its network in DDP. Use strategy.{alternative}."

    def _wrap(self, network: nn.Module) -> nn.Module:
        ids = None if self.root_device.type == "cpu" else [self.root_device]
        wrapped = DistributedDataParallel(network, device_ids=ids, **self.ddp)
        comm_hooks.register(self.comm_hook, wrapped, self.rank, self.timeout_s)
        return wrapped

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state for a checkpoint. A sharded optimizer gathers it from all ranks."""
        module = self.lightning_module
        sharded = module.stepper.sharded(optimizer) if isinstance(module, HasStepper) else None
        return super().optimizer_state(optimizer) if sharded is None else sharded.state_dict()

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self.rank.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if not self.rank.is_distributed:
            return obj
        box = [obj]
        dist.broadcast_object_list(box, src)
        return box[0]
