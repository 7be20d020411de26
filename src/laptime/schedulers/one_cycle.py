"""One cycle: the learning rate rises linearly, then falls linearly."""

from torch.optim import Optimizer

from laptime.schedulers.step_schedule import StepSchedule, check_fraction


class OneCycle(StepSchedule):
    """Rises linearly from `start` times the optimizer's learning rate to that rate, then falls linearly to `end` times.

    Args:
        optimizer, epochs, num_steps_per_epoch: the arguments of StepSchedule.
        warmup_fraction: fraction of all steps that the rise takes, in [0, 1).
        start, end: first and final factor of the learning rate, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: Smith and Topin 2019, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
    Their schedule also changes the momentum; this one does not.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        num_steps_per_epoch: int,
        warmup_fraction: float,
        start: float,
        end: float,
    ) -> None:
        check_fraction("warmup_fraction", warmup_fraction)
        check_fraction("start", start)
        check_fraction("end", end)
        self.start = start
        self.end = end
        self.num_warmup_steps = round(warmup_fraction * epochs * num_steps_per_epoch)
        super().__init__(optimizer, epochs, num_steps_per_epoch)

    def factor(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return self.start + (1 - self.start) * step / self.num_warmup_steps
        done = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return 1 - (1 - self.end) * done
