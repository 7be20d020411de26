"""Each rank updates its share of the weights, and writes it into the other ranks'.

A rank that has averaged its share of the gradients needs no more of them where the optimizer looks at every element by
itself: so it updates that share at once, and sends weights instead of gradients. The same arithmetic on every element,
once on one machine instead of once per rank: stage 1 of ZeRO (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models"), in shared memory.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laptime.errors import UserError
from laptime.ranks.shared_memory import SharedMemory, SharedTensor, flat_view, shard_range

# They update every element from its own gradient and state alone.
_ELEMENTWISE = (
    torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW,
    torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.SGD,
)  # fmt: skip


def reason_not_to_shard(optimizer: Optimizer, gradient_clip_norm: float | None) -> str | None:
    """Why the ranks can't each update a share; None: they can."""
    if type(optimizer) not in _ELEMENTWISE:
        return f"{type(optimizer).__name__} may look at more than single elements of a weight"
    if gradient_clip_norm is not None:
        return f"training.gradient_clip_norm={gradient_clip_norm:g} needs the norm of all averaged gradients"
    for parameter in _trained(optimizer):
        if parameter.ndim == 0 or not _is_dense(parameter):
            return f"a parameter of shape {tuple(parameter.shape)} and strides {parameter.stride()} can't be shared out"
    return None


class ShardedOptimizer:
    """Takes an optimizer's steps, a share on each rank.

    The optimizer itself keeps the settings, which schedulers move; its state is kept in shares. All ranks make one at
    the same time, and take the same steps.

    Args:
        optimizer: of the whole weights; its state is gone on from.
        shared: whose hook collects the gradients.

    Attributes:
        own: the optimizer of this rank's share.
    """

    def __init__(self, optimizer: Optimizer, shared: SharedMemory) -> None:
        self.optimizer = optimizer
        self._shared = shared
        self._weights: dict[Tensor, SharedTensor] = {}  # this rank's share of each weight that it has a share of
        for number, parameter in enumerate(_trained(optimizer)):
            if not parameter.numel():
                continue
            weight = shared.map_shared(parameter.data, f"weight {number}")
            if mine := shared.shard_range(parameter.numel()):
                self._weights[parameter] = weight.select(mine)
        self._addresses = {parameter: parameter.data_ptr() for parameter in self._weights}
        self._shards = {parameter: nn.Parameter(weight.local) for parameter, weight in self._weights.items()}
        kind: Any = type(optimizer)
        self.local: Optimizer = kind([
            {**_settings(group), "params": [self._shards[each] for each in group["params"] if each in self._shards]}
            for group in optimizer.param_groups
        ])  # fmt: skip
        for parameter, shard in self._shards.items():
            mine = shared.shard_range(parameter.numel())
            for name, value in optimizer.state.get(parameter, {}).items():
                is_whole = isinstance(value, Tensor) and value.shape == parameter.shape
                part = flat_view(value)[mine.start : mine.stop].clone() if is_whole else copy.deepcopy(value)
                self.local.state[shard][name] = part
        optimizer.state.clear()

    def step(self) -> None:
        """Average this rank's share of the gradients, update its share of the weights, and send that to all ranks.

        Raises:
            torch.distributed.DistNetworkError: another rank is gone or did not come in time.
            UserError: a weight is no longer where it was.
        """
        with self._shared.timed():
            self._require_same_addresses()
            # DDP gives none to a parameter that no rank has used; an optimizer leaves such a one alone.
            used = [parameter for parameter in self._shards if parameter.grad is not None]
            self._shared.barrier()  # everybody's gradients are complete
            gradients = [self._shared.collected[parameter] for parameter in used]
            own = [gradient.local for gradient in gradients]
            for others in zip(*(gradient.peers for gradient in gradients), strict=True):
                torch._foreach_add_(own, others)
            if own:
                torch._foreach_mul_(own, 1 / self._shared.rank.world_size)
        for parameter, shard in self._shards.items():
            shard.grad = None if parameter.grad is None else self._shared.collected[parameter].local
        for shares, whole in zip(self.local.param_groups, self.optimizer.param_groups, strict=True):
            shares.update(_settings(whole))
        self.local.step()
        with self._shared.timed():
            sent = [self._weights[parameter] for parameter in used]
            for others in zip(*(weight.peers for weight in sent), strict=True):
                torch._foreach_copy_(others, [weight.local for weight in sent])
            self._shared.barrier()  # every share has been written
        self._shared.is_collected = False
        # The schedulers of torch 2.14 ask whether steps are taken: https://github.com/pytorch/pytorch/pull/21460
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def _require_same_addresses(self) -> None:
        if any(parameter.data_ptr() != place for parameter, place in self._addresses.items()):
            raise UserError(
                "strategy.shard_optimizer: something has put a weight's data into other memory, which the ranks don't "
                "share. Use strategy.shard_optimizer=false."
            )

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer's own would be, had it taken the steps; all ranks ask for it at the same time."""
        rank, parameters = self._shared.rank, _trained(self.optimizer)
        shards = [self._shards.get(each) for each in parameters]
        shares = [{} if shard is None else dict(self.local.state.get(shard, {})) for shard in shards]
        for number, of_parameters in enumerate(rank.gather(shares)):
            for parameter, share in zip(parameters, of_parameters, strict=True):
                theirs = shard_range(parameter.numel(), number, rank.world_size)
                for name, value in share.items():
                    state = self.optimizer.state[parameter]
                    if isinstance(value, Tensor) and value.ndim:
                        whole = state.setdefault(name, torch.empty_like(parameter, dtype=value.dtype))
                        flat_view(whole)[theirs.start : theirs.stop] = value
                    else:
                        state[name] = value
        found = self.optimizer.state_dict()
        self.optimizer.state.clear()
        return found


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of an optimizer's group: learning rate and whatever else a scheduler may move."""
    return {name: value for name, value in group.items() if name != "params"}


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, each its own place."""
    return torch.empty_like(tensor).stride() == tensor.stride()
