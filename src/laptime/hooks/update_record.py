"""What follows from the laps so far, section by section of run.json."""

import os
from typing import TYPE_CHECKING

import torch

from laptime.lap.quality import assess
from laptime.machine.counters import snapshot
from laptime.machine.environment import python_settings, slowing_settings
from laptime.record import schema
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled

if TYPE_CHECKING:
    from laptime.hooks.timed_run import TimedRun

_MAX_NOISE_LAPS = 1000  # laps of which run.json says what else the machine did


def update_record(run: "TimedRun") -> None:
    """Fill in the record of a run; nothing before its first lap, and on other ranks than the first."""
    record, recorder = run.record, run.recorder
    if record is None or not recorder.rows:
        return
    recorder.note_timing(record, run.warmup_laps)
    recorder.note_result(record)
    recorder.note_resources(record, run.clock.energy)
    attempt = record.attempts[-1]
    attempt.total_train_s = record.timing.total_train_s = sum(each.epoch_time_s for each in recorder.epochs)
    run.warmup.note(record)
    _note_batch(run, record)
    _note_quality(run, record)


def _note_batch(run: "TimedRun", record: RunRecord) -> None:
    """Samples and FLOPs of a batch."""
    per_step, size, timing = run.training.batches_per_step, run.batch_size, record.timing
    if size is not None and per_step is not None:
        batch = filled(record.batch)
        batch.per_rank_batch_size, batch.global_batch_size = size * per_step, size * per_step * run.rank.world_size
    model, flops, counted = filled(record.model), run.warmup.flops_per_batch, run.warmup.flops_samples
    model.flops_per_batch = flops
    if flops is not None and counted:
        model.flops_per_sample = flops // counted
        if timing.samples_per_s and timing.batches_per_s:
            model.flops_per_batch = round(of_mean_batch(flops / counted, timing, run.rank.world_size))


def of_mean_batch(flops_per_sample: float, timing: schema.Timing, world_size: int) -> float:
    """FLOPs of a batch of mean size on one rank: others hold more samples than the one that was counted, or fewer.

    Args:
        timing: samples_per_s (of all ranks) and batches_per_s (of each) are known.
    """
    return flops_per_sample * (timing.samples_per_s or 0.0) / (timing.batches_per_s or 1.0) / world_size


def _note_quality(run: "TimedRun", record: RunRecord) -> None:
    """What else the machine did, and how far the figures can be trusted for that."""
    recorder, training = run.recorder, run.training
    record.noise.epochs, record.noise.load_after = recorder.noise[:_MAX_NOISE_LAPS], snapshot().load
    times = [each.epoch_time_s for each in recorder.counted]
    if not times:
        return
    found = assess(
        [each for each in recorder.noise if not each.is_warmup],
        times,
        os.cpu_count() or 1,
        record.noise.on_battery,
        filled(record.strategy).oversubscribed,
        profiled=training.is_profiled,
        crowded=run.rank.world_size > 1 or training.has_workers,
        timed="laps",
        slowing_settings=slowing_settings((filled(record.environment).settings or {}) | python_settings()),
        threads=(run.rank.threads, torch.get_num_threads()),
        warmup_key="warmup_laps",
        one_thread="torch.set_num_threads(1)",
    )
    record.quality = schema.Quality(grade=found.grade, reasons=list(found.reasons))
