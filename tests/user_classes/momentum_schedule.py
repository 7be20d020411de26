"""A scheduler that changes the momentum in addition to the learning rate."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR


class MomentumToo(ExponentialLR):
    """Multiplies the learning rate and Adam's momentum by a factor after each epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self._is_initialized = False
        super().__init__(optimizer, gamma)
        self._is_initialized = True

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        if self._is_initialized:
            for group in self.optimizer.param_groups:
                group["betas"] = (group["betas"][0] * self.gamma, group["betas"][1])
