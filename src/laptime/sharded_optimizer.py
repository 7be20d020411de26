"""Each rank updates its share of the weights, and writes it into the other ranks'.

A rank that has averaged its share of the gradients needs no more of them where the optimizer looks at every element by
itself: so it updates that share at once, and sends weights instead of gradients. The same arithmetic on every element,
once on one machine instead of once per rank: stage 1 of ZeRO (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models"), in shared memory.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laptime.shared_memory import Shared, SharedMemory, in_memory, share_of

# They update every element from its own gradient and state alone.
_ELEMENTWISE = (
    torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW,
    torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.SGD,
)  # fmt: skip


def reason_against(optimizer: Optimizer, gradient_clip_norm: float | None) -> str | None:
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
        make_optimizer: makes one like it for other weights.
        shared: whose hook collects the gradients.
    """

    def __init__(
        self, optimizer: Optimizer, make_optimizer: Callable[[Iterable[Tensor]], Optimizer], shared: SharedMemory
    ) -> None:
        self.optimizer = optimizer
        self._shared = shared
        self._weights: dict[Tensor, Shared] = {}  # this rank's share of each weight that it has a share of
        for number, parameter in enumerate(_trained(optimizer)):
            weight = shared.share(parameter.data, f"weight {number}")
            if mine := shared.share_of(parameter.numel()):
                self._weights[parameter] = weight.part(mine)
        self._shards = {parameter: nn.Parameter(weight.own) for parameter, weight in self._weights.items()}
        # An optimizer of nothing is refused, and of a tiny network a rank may have no share.
        self._own = make_optimizer(list(self._shards.values()) or [nn.Parameter(torch.empty(0))])
        for parameter, shard in self._shards.items():
            mine = shared.share_of(parameter.numel())
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value = in_memory(value)[mine.start : mine.stop]
                self._own.state[shard][name] = copy.deepcopy(value)
        optimizer.state.clear()
        self._collected: dict[Tensor, Shared] | None = None
        self._gradients: list[Shared] = []

    def step(self) -> None:
        """Average this rank's share of the gradients, update its share of the weights, and send that to all ranks.

        Raises:
            torch.distributed.DistNetworkError: another rank is gone or did not come in time.
        """
        with self._shared.timed():
            self._find_gradients()
            self._shared.meet()  # everybody's gradients are complete
            own = [gradient.own for gradient in self._gradients]
            for others in zip(*(gradient.others for gradient in self._gradients), strict=True):
                torch._foreach_add_(own, others)
            if own:
                torch._foreach_mul_(own, 1 / self._shared.rank.world_size)
        for shares, whole in zip(self._own.param_groups, self.optimizer.param_groups, strict=True):
            shares.update({name: value for name, value in whole.items() if name != "params"})
        self._own.step()
        with self._shared.timed():
            weights = [weight.own for weight in self._weights.values()]
            for others in zip(*(weight.others for weight in self._weights.values()), strict=True):
                torch._foreach_copy_(others, weights)
            self._shared.meet()  # every share has been written
        self._shared.is_collected = False
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers ask whether steps are taken

    def _find_gradients(self) -> None:
        """DDP moves the gradients after the first step."""
        if self._collected is self._shared.collected:
            return
        self._collected = self._shared.collected
        self._gradients = []
        for parameter, shard in self._shards.items():
            mine = self._collected[parameter].part(self._shared.share_of(parameter.numel()))
            shard.grad = mine.own
            self._gradients.append(mine)

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer's own would be, had it taken the steps; all ranks ask for it at the same time."""
        rank, parameters = self._shared.rank, _trained(self.optimizer)
        shares = [self._own.state[self._shards[each]] if each in self._shards else {} for each in parameters]
        for number, of_parameters in enumerate(rank.gather([dict(share) for share in shares])):
            for parameter, share in zip(parameters, of_parameters, strict=True):
                theirs = share_of(parameter.numel(), number, rank.world_size)
                state = self.optimizer.state[parameter]
                for name, value in share.items():
                    if isinstance(value, Tensor) and value.ndim:
                        whole = state.setdefault(name, torch.empty_like(parameter, dtype=value.dtype))
                        in_memory(whole)[theirs.start : theirs.stop] = value
                    else:
                        state[name] = value
        found = self.optimizer.state_dict()
        self.optimizer.state.clear()
        return found


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, each its own place."""
    return torch.empty_like(tensor).stride() == tensor.stride()
