"""Learning rate schedules that change at every optimizer step, one per file. For schedules by epochs, use torch's."""

from laptime.schedulers.step_schedule import StepSchedule

__all__ = ["StepSchedule"]
