"""Linear warm-up, then half a cosine."""

import math

from torch.optim import Optimizer

from laptime.schedulers.step_schedule import StepSchedule, check_share


class CosineWarmup(StepSchedule):
    """Up to the optimizer's learning rate along a line, then down along half a cosine.

    Args:
        optimizer, epochs, num_steps_per_epoch: as in StepSchedule.
        warmup_share: of all steps, for the way up, in [0, 1).
        end: where the cosine leads to, as a share of the learning rate, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", without restarts; the
    warm-up is that of Goyal et al. 2017, "Accurate, Large Minibatch SGD".
    """

    def __init__(
        self, optimizer: Optimizer, epochs: int, num_steps_per_epoch: int, warmup_share: float, end: float
    ) -> None:
        check_share("warmup_share", warmup_share)
        check_share("end", end)
        self.end = end
        self.num_warmup_steps = round(warmup_share * epochs * num_steps_per_epoch)
        super().__init__(optimizer, epochs, num_steps_per_epoch)

    def share(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return (step + 1) / (self.num_warmup_steps + 1)
        done = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2
