"""Linear warm-up, then half a cosine."""

import math

from torch.optim import Optimizer

from laptime.schedulers.step_schedule import StepSchedule, check_fraction


class CosineWarmup(StepSchedule):
    """Warms up linearly to the optimizer's learning rate, then follows half a cosine down to `end` times that rate.

    Args:
        optimizer, epochs, num_steps_per_epoch: the arguments of StepSchedule.
        warmup_fraction: fraction of all steps that the warm-up takes, in [0, 1).
        end: final factor of the learning rate, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", without restarts. The
    warm-up is from Goyal et al. 2017, "Accurate, Large Minibatch SGD".
    """

    def __init__(
        self, optimizer: Optimizer, epochs: int, num_steps_per_epoch: int, warmup_fraction: float, end: float
    ) -> None:
        check_fraction("warmup_fraction", warmup_fraction)
        check_fraction("end", end)
        self.end = end
        self.num_warmup_steps = round(warmup_fraction * epochs * num_steps_per_epoch)
        super().__init__(optimizer, epochs, num_steps_per_epoch)

    def factor(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return (step + 1) / (self.num_warmup_steps + 1)
        done = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2
