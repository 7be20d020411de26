"""Updates the sections of run.json that are computed from the laps so far."""

import os
from typing import TYPE_CHECKING

import torch

from laptime.lap.quality import assess
from laptime.machine.counters import snapshot
from laptime.machine.environment import python_settings, slowing_settings
from laptime.record import schema
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled
from laptime.record.score import ACCURACY

if TYPE_CHECKING:
    from laptime.hooks.timed_run import TimedRun

_MAX_NOISE_LAPS = 1000  # laps whose machine counters are kept in run.json


def update_record(run: "TimedRun") -> None:
    """Update the record of a run. Do nothing before the first lap, and on ranks other than 0."""
    record, recorder = run.record, run.recorder
    if record is None or not recorder.rows:
        return
    recorder.note_timing(record, run.warmup_laps)
    recorder.note_result(record)
    note_score(record)
    recorder.note_resources(record, run.clock.energy)
    attempt = record.attempts[-1]
    attempt.total_train_s = record.timing.total_train_s = sum(lap.epoch_time_s for lap in recorder.epochs)
    run.warmup.update_record(record)
    _update_batch(run, record)
    _update_quality(run, record)


def note_score(record: RunRecord) -> None:
    """Make accuracy the score of a run that has accuracies, if the user has named no score."""
    result = record.result
    accuracies = (result.train_accuracy, result.val_accuracy, result.test_accuracy)
    if result.score is None and any(value is not None for value in accuracies):
        result.score = ACCURACY


def _update_batch(run: "TimedRun", record: RunRecord) -> None:
    per_step, size, timing = run.training.batches_per_step, run.batch_size, record.timing
    if size is not None and per_step is not None:
        batch = filled(record.batch)
        batch.per_rank_batch_size, batch.global_batch_size = size * per_step, size * per_step * run.rank.world_size
    model, flops, num_samples = filled(record.model), run.warmup.flops_per_batch, run.warmup.flops_samples
    model.flops_per_batch = flops
    if flops is not None and num_samples:
        model.flops_per_sample = flops // num_samples
        if timing.samples_per_s and timing.batches_per_s:
            model.flops_per_batch = round(flops_of_mean_batch(flops / num_samples, timing, run.rank.world_size))


def flops_of_mean_batch(flops_per_sample: float, timing: schema.Timing, world_size: int) -> float:
    """Return the FLOPs of a batch of mean size on one rank.

    The batch whose FLOPs were counted may be larger or smaller.

    Args:
        timing: the section of the record, with samples_per_s (of all ranks) and batches_per_s (per rank).
    """
    return flops_per_sample * (timing.samples_per_s or 0.0) / (timing.batches_per_s or 1.0) / world_size


def _update_quality(run: "TimedRun", record: RunRecord) -> None:
    """Record the machine's other activity during the laps, and the resulting grade."""
    recorder, training = run.recorder, run.training
    record.noise.epochs, record.noise.load_after = recorder.noise[:_MAX_NOISE_LAPS], snapshot().load
    times = [lap.epoch_time_s for lap in recorder.counted]
    if not times:
        return
    quality = assess(
        [noise for noise in recorder.noise if not noise.is_warmup],
        times,
        os.cpu_count() or 1,
        record.noise.on_battery,
        filled(record.strategy).oversubscribed,
        profiled=training.is_profiled,
        crowded=run.rank.world_size > 1 or training.has_workers,
        timed="laps",
        slowing_settings=slowing_settings((filled(record.environment).settings or {}) | python_settings()),
        threads=(run.rank.threads, torch.get_num_threads()),
        more_warmup=f"warmup_laps={run.warmup_laps + 1}",
        one_thread="torch.set_num_threads(1)",
    )
    record.quality = schema.Quality(grade=quality.grade, reasons=list(quality.reasons))
