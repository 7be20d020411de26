"""One run of somebody else's training: what all timers have in common, whoever calls them.

A timer says when batches are asked for, begin and end, when a lap ends and when something is no training. The run
counts, takes steps of the warm-up lap apart, and writes.
"""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from laptime.errors import UserError
from laptime.hooks.batch_counter import BatchCounter
from laptime.hooks.guard import Guard, log
from laptime.hooks.identity import HydraJob
from laptime.hooks.new_record import new_record, reserve
from laptime.hooks.peak import measure_peak
from laptime.hooks.printing import lap_line, print_line, summary_lines
from laptime.hooks.ranks import RankGroup
from laptime.hooks.settings import Settings, Timer, Training
from laptime.hooks.update_record import update_record
from laptime.hooks.warmup import WarmupSteps
from laptime.lap.clock import Lap, LapClock
from laptime.lap.recorder import LapRecorder, Scores
from laptime.machine.device import Device
from laptime.machine.energy import EnergyMeter
from laptime.machine.memory import peak_rss_bytes
from laptime.measure.peak import TRAINER_DTYPES
from laptime.ranks.rank import Rank
from laptime.record.directory import release
from laptime.record.epochs import Epoch, combine_ranks
from laptime.record.masking import mask_text
from laptime.record.run_record import RunRecord
from laptime.record.schema import RunError, Status, filled
from laptime.text import format_os_error

# What only Laptime's own training can measure.
_NEVER_MEASURED = {
    "contention": "it takes steps without synchronization, which would change the training",
    "bare_loop": "it is known for Laptime's own training only",
    "breakdown.epoch_start_s": "it takes steps of an epoch of its own",
    "breakdown.instrument_s": "the steps that were taken apart are of the warm-up lap",
}


class TimedRun:
    """Times a training and writes its run directory.

    Args:
        timer: who calls.
        settings: of the user.
        training: what is known of it.
        device: that trains; is synchronized at both ends of a lap and of a pause.
        rank: this process.
        guard: what fails is left out there.
        job: of Hydra's, that the training is.

    Attributes:
        clock: of the lap.
        counter: of samples and tokens.
        warmup: takes steps of the warm-up lap apart.
        run_dir: None: it can't be written, or another rank writes.
        record: on the first rank; None on others.
        num_laps: ended so far.
        batch_size: samples of the first batch; None: not known.
    """

    def __init__(
        self,
        timer: Timer,
        settings: Settings,
        training: Training,
        device: Device,
        rank: Rank,
        guard: Guard,
        job: HydraJob | None = None,
    ) -> None:
        self.settings = settings
        self.training = training
        self.device = device
        self.rank = rank
        self.guard = guard
        self.ranks = RankGroup(rank)
        energy = guard.attempt("resources.energy_joules", lambda: EnergyMeter(device)) if rank.local_rank == 0 else None
        self.clock = LapClock(device, energy, resets_peak=False)
        self.run_dir: Path | None = None
        self.record: RunRecord | None = None
        if rank.is_first:
            self.run_dir = self._reserve_directory(job)
            self.record = new_record(timer, settings, training, device, rank, self.run_dir)
        self.recorder = LapRecorder(self.run_dir, rank)
        self.counter = BatchCounter(settings, guard, training.num_loaders > 1)
        warmup_laps = settings.warmup_laps
        if training.num_epochs == 1 and settings.every is None:
            warmup_laps = 0  # the only lap
        self.warmup_laps = warmup_laps
        self.warmup = WarmupSteps(device, settings, training, guard, has_laps=warmup_laps > 0)
        self.num_laps = 0
        self.first_lap = 0
        self._num_warmup_laps = 0
        self._num_pauses = 0
        self._is_over = False
        self._num_batches = 0
        self.batch_size: int | None = None
        self._pending: Lap | None = None
        self._is_partial = False
        self._started_at: float | None = None
        self._rss_before = peak_rss_bytes()
        self._next_update_at = 0.0
        guard.on_give_up = self.abandon
        self._write()

    def _reserve_directory(self, job: HydraJob | None) -> Path | None:
        try:
            return reserve(self.settings, job)
        except (UserError, OSError) as error:
            self.guard.mark_missing("run.json", str(error))
            return None

    def warn_if_every_is_too_large(self) -> None:
        """Warn where no lap of so many batches will be whole."""
        every, num_batches = self.settings.every, self.training.num_batches
        if self.rank.is_first and every is not None and num_batches is not None and every > num_batches:
            log.warning(
                "laptime: every=%d: the training has %d batches, so no lap will be whole. Pass at most half of that.",
                every,
                num_batches,
            )

    # Laps.

    @property
    def is_warmup(self) -> bool:
        """Whether the lap under way isn't counted."""
        return self._num_warmup_laps < self.warmup_laps

    @property
    def is_over(self) -> bool:
        """Whether the last step of the lap has been taken."""
        return self._is_over and self.clock.is_running

    @property
    def is_timing(self) -> bool:
        """Whether the clock runs."""
        return self.clock.is_running and not self.clock.is_paused

    @property
    def lap_is_full(self) -> bool:
        """Whether the lap under way has all of its batches, counting the one that is being trained on."""
        return self.settings.every is not None and self.clock.num_batches + 1 >= self.settings.every

    def start_lap(self, is_partial: bool = False) -> None:
        """The first batch of a lap is asked for.

        Args:
            is_partial: the epoch was begun by another run, so the lap isn't counted.
        """
        self._is_partial, self._is_over, self._num_pauses = is_partial, False, 0
        if self._started_at is None:
            self._started_at = time.perf_counter()
        self.clock.start()

    def pause(self) -> None:
        """What follows is no training, until `resume`; pauses may lie within each other."""
        self._num_pauses += 1
        if self.is_timing:
            self.clock.pause()
            self.warmup.pause()

    def resume(self) -> None:
        """Training goes on."""
        self._num_pauses = max(0, self._num_pauses - 1)
        if not self._num_pauses and not self._is_over and self.clock.is_paused:
            self.warmup.resume()
            self.clock.resume()

    def close_lap(self) -> None:
        """The last step of the lap has been given to the device; the lap is made by `end_lap`."""
        self._is_over = True
        self.clock.pause()

    def batch_begins(self) -> None:
        """A batch is there and is about to be trained on."""
        if self.is_warmup:
            self.warmup.batch_begins()

    def batch_ends(self, batch: Any, loss: Tensor | None = None) -> None:
        """A batch has been trained on."""
        self.count(self.counter.samples(batch), self.counter.tokens(batch), loss)

    def count(self, samples: int | None, tokens: Any, loss: Tensor | None = None) -> None:
        """A batch with so many samples and tokens has been trained on."""
        if self.batch_size is None:
            self.batch_size = samples
        self.clock.count(samples, tokens, loss)
        self.warmup.batch_ends(samples)

    def end_lap(self, number: int | None = None) -> None:
        """The lap is over; it is written by `write_lap`, when nobody is timed.

        Args:
            number: of the epoch; None: laps are counted.
        """
        self._num_batches += self.clock.num_batches
        per_step = self.training.batches_per_step
        lap = self.clock.stop(
            self.first_lap + self.num_laps if number is None else number,
            self.is_warmup or self._is_partial,
            num_steps=None if per_step is None else self._num_steps(per_step),
        )
        self._pending = lap
        self.warmup.end()
        if not self._is_partial:
            self._num_warmup_laps += 1
        self.num_laps += 1

    def _num_steps(self, per_step: int) -> float:
        """Optimizer steps of the lap: an epoch's last one takes what is left, and laps of batches share one."""
        num_batches = self.clock.num_batches
        return -(-num_batches // per_step) if self.settings.every is None else num_batches / per_step

    def drop_lap(self) -> None:
        """The lap was broken off."""
        self.clock.drop()
        self.warmup.end()

    def write_lap(self, scores: Scores) -> tuple[Epoch, float | None] | None:
        """Write the lap that ended last, with what was learned.

        Returns:
            On the first rank, the lap of all ranks, and its joules where they were measured; None: there is none, or
            it couldn't be written.

        Raises:
            MissingRanks: on the first rank, as `RankGroup.gather` says.
        """
        if self._pending is None:
            return None
        lap, self._pending = self._pending, None
        scores = replace(scores, train_loss=lap.loss if scores.train_loss is None else scores.train_loss)
        if lap.num_samples is None:
            reason = self.guard.missing.get(
                "samples",
                "the samples of a batch can't be told: its tensors differ in their first dimension. Pass samples=, a "
                "function from a batch to their number",
            )
            self.guard.mark_missing("timing.samples_per_s", reason, warn="samples" not in self.guard.missing)
        if lap.num_tokens is None:
            reason = self.guard.missing.get("tokens", "the batches aren't known to be text. Pass tokens=")
            self.guard.mark_missing("timing.tokens_per_s", reason, warn=False)
        if self.rank.world_size > 1 and self.warmup.ddp is None:
            reason = "what ranks wait for each other is known where torch's DistributedDataParallel is seen"
            self.guard.mark_missing("communication", reason, warn=False)
        share = self.recorder.rank_lap(lap, scores)
        shares = self.ranks.gather(f"lap {self.num_laps}", (share, os.getpid()))
        try:
            epoch = self.recorder.add(lap, [each for each, _ in shares])
        except OSError as error:  # a full disk, a directory that is gone
            self.guard.mark_missing("epochs.csv", format_os_error(error))
            self.recorder.run_dir = None
            epoch = combine_ranks([each.row for each, _ in shares])
        if self.record is None:
            return None
        filled(self.record.strategy).rank_pids = [pid for _, pid in shares]
        note = "partial, not counted" if self._is_partial else "warm-up, not counted" if lap.is_warmup else ""
        print_line(lap_line(epoch, self._total_laps, self._left_s(), note))
        if time.monotonic() >= self._next_update_at:
            self._note()
        return epoch, self.recorder.joules([each for each, _ in shares])

    @property
    def _total_laps(self) -> int | None:
        every, training = self.settings.every, self.training
        if every is None:
            return training.num_epochs
        return None if training.num_batches is None else self.first_lap + training.num_batches // every

    def _left_s(self) -> float | None:
        """Seconds that the rest will take, from all that the training has taken so far; said once."""
        training = self.training
        if self.num_laps != 1 or self._started_at is None or not training.num_batches or not self._num_batches:
            return None
        share_done = self._num_batches / training.num_batches
        passed_s = time.perf_counter() - self._started_at
        return passed_s * (1 / share_done - 1) if share_done < 1 else None

    # The record, on the first rank.

    def _note(self) -> None:
        """Fill in what follows from the laps so far, and write: after each lap, but for laps so short that this would
        take more than a tenth of the time."""
        before = time.monotonic()
        update_record(self)
        self._write()
        self._next_update_at = time.monotonic() + 10 * (time.monotonic() - before)

    def _write(self) -> None:
        record, run_dir = self.record, self.run_dir
        if record is not None and run_dir is not None:
            record.missing = _NEVER_MEASURED | self.guard.missing
            self.guard.attempt("run.json", lambda: record.write(run_dir))

    # The end.

    def abandon(self, reason: str) -> None:
        """The timer failed: leave the training alone, and a record that says so."""
        self.clock.drop()
        self.ranks.announce_exit()
        self.end("failed", RunError(type="TimerFailed", message=reason))

    def measure_peak(self, optimizer_bytes: int) -> None:
        """Measure the fastest matrix product, on all ranks at once, and what of it was reached."""
        if not self.settings.peak:
            self.guard.mark_missing("peak", "peak=False", warn=False)
        elif self.training.precision not in TRAINER_DTYPES:
            self.guard.mark_missing("peak", f"no matrix product is known for precision {self.training.precision}")
        elif self.num_laps:
            update_record(self)
            self.guard.attempt("peak", lambda: measure_peak(self, optimizer_bytes))

    def note_memory(self) -> None:
        """The peak of the process, where the training raised it."""
        peak = peak_rss_bytes()
        shares = self.ranks.gather("memory", peak if peak > self._rss_before else 0)
        if self.record is not None:
            resources = self.record.resources
            resources.peak_rss_bytes = max(resources.peak_rss_bytes or 0, sum(shares)) or None

    def note_test(self, loss: float | None, accuracy: float | None, num_test: int = 0) -> None:
        """The scores of a test after the training.

        Args:
            num_test: its samples; 0: not known.
        """
        if self.record is not None:
            filled(self.record.dataset).num_test = num_test
            self.record.result.test_loss, self.record.result.test_accuracy = loss, accuracy
            self._write()

    def end(self, status: Status, error: RunError | None = None, reason: str = "epochs") -> None:
        """Write how it ended, and print what was found.

        Args:
            reason: why a training that did not fail stopped: epochs, max_steps, callback.
        """
        record = self.record
        self.warmup.end()
        with contextlib.suppress(Exception):  # it may be what has failed
            update_record(self)
        self.warmup.close()
        if record is None or record.status != "running":
            return
        if error is not None:
            error.message = mask_text(error.message)
        record.result.stop_reason = reason if status == "completed" else None
        record.end_attempt(status, error)
        self._write()
        for line in summary_lines(record, self.run_dir if "run.json" not in self.guard.missing else None):
            print_line(line)
        if self.run_dir is not None:
            release(self.run_dir)
        if status == "completed" and record.seed is None and record.timing.epoch_time_s is not None:
            log.warning(
                "laptime: the seed of this run is not known, so two runs may be the same one twice. Set it with "
                "seed_everything(...), or pass seed=."
            )
