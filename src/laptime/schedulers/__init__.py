"""Learning rate schedules by optimizer steps, one per file; those by epochs are torch's."""

from laptime.schedulers.step_schedule import StepSchedule

__all__ = ["StepSchedule"]
