"""The average of a network's weights over the training. It is evaluated and saved instead of the weights."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average over optimizer steps, or an equal-weight average over the ends of epochs.

    Lightning 2.6's WeightAveraging (not reported) copies the whole module, DDP included, and updates once per Lightning
    batch, which holds several steps here. torch's AveragedModel waits for the device at each update.
    Floating-point buffers, e.g. BatchNorm's statistics, are averaged like weights.

    Args:
        network: the network whose weights are averaged.
        ema_decay: decay of the moving average per step, in (0, 1); None: no moving average.
        swa_start_epoch: first epoch, counted from 0, whose final weights are averaged; None: no average over epochs.

    Attributes:
        num_averaged: number of updates of the average; 0: there is no average yet.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; Izmailov et al. 2018,
    "Averaging Weights Leads to Wider Optima and Better Generalization".
    """

    def __init__(self, network: nn.Module, ema_decay: float | None = None, swa_start_epoch: int | None = None) -> None:
        self.network = network
        self.ema_decay = ema_decay
        self.swa_start_epoch = swa_start_epoch
        self.num_averaged = 0
        self._average: dict[str, Tensor] = {}
        # Cached, because walking through the network's modules at every step would cost more than the averaging.
        self._weights: list[Tensor] = []
        self._averages: list[Tensor] = []

    def after_step(self) -> None:
        """Update the moving average after an optimizer step."""
        if self.ema_decay is not None:
            self._add(1 - self.ema_decay)

    def after_epoch(self, epoch: int) -> None:
        """Update the average over epochs after the last step of an epoch, counted from 0."""
        if self.swa_start_epoch is not None and epoch >= self.swa_start_epoch:
            self._add(1 / (self.num_averaged + 1))

    @torch.no_grad()
    def _add(self, weight: float) -> None:
        if not self._weights:
            weights = dict(_averaged_tensors(self.network))
            self._average = {
                name: self._average[name].to(tensor.device) if self.num_averaged else tensor.detach().clone()
                for name, tensor in weights.items()
            }
            self._weights, self._averages = list(weights.values()), list(self._average.values())
        # torch 2.14 has these operators for whole lists under private names only; not reported.
        if self.num_averaged:
            torch._foreach_lerp_(self._averages, self._weights, weight)
        else:
            torch._foreach_copy_(self._averages, self._weights)
        self.num_averaged += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the values of the network and the average, if there is an average."""
        if self.num_averaged:
            for name, tensor in _averaged_tensors(self.network):
                weights = tensor.clone()  # values are copied, because other ranks may write into the tensor's memory
                tensor.copy_(self._average[name])
                self._average[name].copy_(weights)

    def averaged(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return a module's state dict with the averages in place of the network's weights.

        Args:
            state: the module's state dict.
            prefix: the prefix of the names of the network's weights in that state dict.
        """
        names = {id(tensor): name for name, tensor in _averaged_tensors(self.network)}
        tensors = self.network.state_dict(keep_vars=True).items()  # a weight that is used twice has two names
        averages = {prefix + name: self._average[names[id(tensor)]] for name, tensor in tensors if id(tensor) in names}
        return {**state, **averages}

    def restore(self, state: Mapping[str, Tensor], prefix: str, num_averaged: int) -> None:
        """Resume from a state dict that `averaged` returned."""
        self._average = {name: state[prefix + name].clone() for name, _ in _averaged_tensors(self.network)}
        self.num_averaged = num_averaged
        self._weights = []


def _averaged_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point weights and buffers with their names. A tensor with several names comes only once."""
    seen = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
