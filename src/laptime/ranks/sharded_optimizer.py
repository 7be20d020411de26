"""A sharded optimizer: each rank updates one shard of the weights and writes it into the other ranks' memory.

If an optimizer updates every element independently, a rank needs the averaged gradients of its own shard only. So it
updates that shard immediately, and sends weights instead of gradients. The arithmetic is the same, but is done once per
machine instead of once per rank. This is stage 1 of ZeRO, in shared memory.
Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laptime.errors import UserError
from laptime.ranks.shared_memory import SharedMemory, SharedTensor, flat_view, shard_range

# These optimizers update every element from its own gradient and state alone.
_ELEMENTWISE = (
    torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW,
    torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.SGD,
)  # fmt: skip


def reason_not_to_shard(optimizer: Optimizer, gradient_clip_norm: float | None) -> str | None:
    """Return the reason why the optimizer can't be sharded; None: it can."""
    if type(optimizer) not in _ELEMENTWISE:
        return f"{type(optimizer).__name__} may need whole weights, and a rank has only a shard of them"
    if gradient_clip_norm is not None:
        return f"training.gradient_clip_norm={gradient_clip_norm:g} needs the norm of all gradients"
    for parameter in _trained(optimizer):
        if parameter.ndim == 0 or not _is_dense(parameter):
            return f"a parameter of shape {tuple(parameter.shape)} and strides {parameter.stride()} can't be sharded"
    return None


class ShardedOptimizer:
    """Takes the steps of an optimizer; each rank updates one shard of the weights.

    The optimizer keeps its settings, which schedulers change. Its state is sharded. All ranks create a
    ShardedOptimizer at the same time, and take the same steps.

    Args:
        optimizer: the optimizer of all weights. The shards take over its state.
        shared: the shared memory whose hook collects the gradients.

    Attributes:
        local: the optimizer of this rank's shard.
    """

    def __init__(self, optimizer: Optimizer, shared: SharedMemory) -> None:
        self.optimizer = optimizer
        self._shared = shared
        self._weights: dict[Tensor, SharedTensor] = {}  # this rank's shards of the weights
        for number, parameter in enumerate(_trained(optimizer)):
            if not parameter.numel():
                continue
            weight = shared.map_shared(parameter.data, f"weight {number}")
            if elements := shared.shard_range(parameter.numel()):
                self._weights[parameter] = weight.select(elements)
        self._addresses = {parameter: parameter.data_ptr() for parameter in self._weights}
        self._shards = {parameter: nn.Parameter(weight.local) for parameter, weight in self._weights.items()}
        kind: Any = type(optimizer)
        self.local: Optimizer = kind([
            {**_settings(group), "params": [self._shards[whole] for whole in group["params"] if whole in self._shards]}
            for group in optimizer.param_groups
        ])  # fmt: skip
        for parameter, shard in self._shards.items():
            elements = shared.shard_range(parameter.numel())
            for name, value in optimizer.state.get(parameter, {}).items():
                is_whole = isinstance(value, Tensor) and value.shape == parameter.shape
                self.local.state[shard][name] = (
                    flat_view(value)[elements.start : elements.stop].clone() if is_whole else copy.deepcopy(value)
                )
        optimizer.state.clear()

    def step(self) -> None:
        """Average this rank's shard of the gradients, update its shard of the weights, and write it to all ranks.

        Raises:
            torch.distributed.DistNetworkError: another rank has died or did not answer in time.
            UserError: a weight is no longer in shared memory.
        """
        with self._shared.timed():
            self._require_same_addresses()
            # DDP gives no gradient to a parameter that no rank has used, and optimizers skip those.
            used = [parameter for parameter in self._shards if parameter.grad is not None]
            self._shared.barrier()  # all ranks have written their gradients
            gradients = [self._shared.collected[parameter] for parameter in used]
            averages = [gradient.local for gradient in gradients]
            for peers in zip(*(gradient.peers for gradient in gradients), strict=True):
                torch._foreach_add_(averages, peers)  # private, but torch's own optimizers use it (2.14); not reported
            if averages:
                torch._foreach_mul_(averages, 1 / self._shared.rank.world_size)
        for parameter, shard in self._shards.items():
            shard.grad = None if parameter.grad is None else self._shared.collected[parameter].local
        for local_group, group in zip(self.local.param_groups, self.optimizer.param_groups, strict=True):
            local_group.update(_settings(group))
        self.local.step()
        with self._shared.timed():
            sent = [self._weights[parameter] for parameter in used]
            for peers in zip(*(weight.peers for weight in sent), strict=True):
                torch._foreach_copy_(peers, [weight.local for weight in sent])
            self._shared.barrier()  # all ranks have written their shard
        self._shared.is_collected = False
        # Schedulers (torch 2.14) warn if the optimizer itself has taken no step: https://github.com/pytorch/pytorch/pull/21460
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def _require_same_addresses(self) -> None:
        if any(parameter.data_ptr() != address for parameter, address in self._addresses.items()):
            raise UserError(
                "strategy.shard_optimizer: a weight's data was moved to other memory, which the ranks don't share. "
                "Use strategy.shard_optimizer=false."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state_dict as if it had taken the steps itself. All ranks must call this together."""
        rank, parameters = self._shared.rank, _trained(self.optimizer)
        shards = [self._shards.get(parameter) for parameter in parameters]
        local_states = [{} if shard is None else dict(self.local.state.get(shard, {})) for shard in shards]
        for number, states in enumerate(rank.gather(local_states)):
            for parameter, shard_state in zip(parameters, states, strict=True):
                elements = shard_range(parameter.numel(), number, rank.world_size)
                for name, value in shard_state.items():
                    state = self.optimizer.state[parameter]
                    if isinstance(value, Tensor) and value.ndim:
                        whole = state.setdefault(name, torch.empty_like(parameter, dtype=value.dtype))
                        flat_view(whole)[elements.start : elements.stop] = value
                    else:
                        state[name] = value
        state_dict: dict[str, Any] = self.optimizer.state_dict()
        self.optimizer.state.clear()
        return state_dict


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group: the learning rate and others that schedulers may change."""
    return {name: value for name, value in group.items() if name != "params"}


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a contiguous piece of memory without gaps or overlaps."""
    return torch.empty_like(tensor).stride() == tensor.stride()
