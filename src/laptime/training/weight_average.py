"""The average of a network's weights over its training, which is evaluated and saved instead of the weights."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average over the steps, or an equal one over the ends of epochs.

    Lightning's WeightAveraging would copy the whole module, with DDP around the network, and look at it once per
    Lightning batch, which carries several steps; torch's AveragedModel waits for the device at each update. Buffers of
    floating-point numbers, like batch norm's statistics, are averaged as weights are.

    Args:
        network: is looked at.
        ema_decay: what a step leaves of the moving average, in (0, 1); None: no such average.
        swa_start_epoch: first epoch, counted from 0, whose last weights are averaged; None: no such average.

    Attributes:
        num_averaged: how often weights went into the average; 0: there is none yet.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; Izmailov et al. 2018,
    "Averaging Weights Leads to Wider Optima and Better Generalization".
    """

    def __init__(self, network: nn.Module, ema_decay: float | None = None, swa_start_epoch: int | None = None) -> None:
        self.network = network
        self.ema_decay = ema_decay
        self.swa_start_epoch = swa_start_epoch
        self.num_averaged = 0
        self._average: dict[str, Tensor] = {}
        # Looked up once: walking through the modules of a network at every step would cost more than averaging.
        self._now: list[Tensor] = []
        self._averages: list[Tensor] = []

    def after_step(self) -> None:
        """An optimizer step has been taken."""
        if self.ema_decay is not None:
            self._add(1 - self.ema_decay)

    def after_epoch(self, epoch: int) -> None:
        """The last step of an epoch, counted from 0, has been taken."""
        if self.swa_start_epoch is not None and epoch >= self.swa_start_epoch:
            self._add(1 / (self.num_averaged + 1))

    @torch.no_grad()
    def _add(self, share: float) -> None:
        if not self._now:
            now = dict(_averaged(self.network))
            self._average = {
                name: self._average[name].to(tensor.device) if self.num_averaged else tensor.detach().clone()
                for name, tensor in now.items()
            }
            self._now, self._averages = list(now.values()), list(self._average.values())
        if self.num_averaged:
            torch._foreach_lerp_(self._averages, self._now, share)
        else:
            torch._foreach_copy_(self._averages, self._now)
        self.num_averaged += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Let the network and the average change their values, where there is an average."""
        if self.num_averaged:
            for name, tensor in _averaged(self.network):
                before = tensor.clone()  # the memory stays: other ranks may write into it
                tensor.copy_(self._average[name])
                self._average[name].copy_(before)

    def averaged(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A module's state with the averages instead of the network's weights.

        Args:
            state: of the module, by name.
            prefix: before the network's own names.
        """
        names = {id(tensor): name for name, tensor in _averaged(self.network)}
        shared = self.network.state_dict(keep_vars=True).items()  # a weight that is used twice has two names
        averages = {prefix + name: self._average[names[id(tensor)]] for name, tensor in shared if id(tensor) in names}
        return {**state, **averages}

    def restore(self, state: Mapping[str, Tensor], prefix: str, num_averaged: int) -> None:
        """Go on from what `averaged` gave."""
        self._average = {name: state[prefix + name].clone() for name, _ in _averaged(self.network)}
        self.num_averaged = num_averaged
        self._now = []


def _averaged(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers that have a mean, each once, by a name that it has in the network's state."""
    seen = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
