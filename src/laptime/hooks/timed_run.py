"""One timed training: the code that all timers share.

A timer reports when a batch is requested, starts and ends, when a lap ends, and when training pauses. The run counts,
measures the phases of steps in the warm-up lap, and writes the run directory.
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
from laptime.hooks.update_record import note_score, update_record
from laptime.hooks.warmup import WarmupSteps
from laptime.lap.clock import Lap, LapClock
from laptime.lap.recorder import LapRecorder, Scores, with_mean_scores
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
from laptime.record.score import ACCURACY
from laptime.text import format_os_error

# Figures that only Laptime's own training has, and the reasons why a timer can't measure them.
_NEVER_MEASURED = {
    "contention": "needs steps without gradient synchronization, which would change the training",
    "bare_loop": "only Laptime's own training has a bare loop to compare with",
    "breakdown.epoch_start_s": "needs an extra epoch",
    "breakdown.instrument_s": "the instrumented steps belong to the warm-up lap",
}


class TimedRun:
    """Times a training and writes its run directory.

    Args:
        timer: name of the public timer.
        settings: the arguments that the user gave the timer.
        training: the facts about the training.
        device: the device that trains, which is synchronized at both ends of a lap and of a pause.
        rank: this process.
        guard: records what failed or can't be measured.
        job: the Hydra job that runs the training; None: there is none.

    Attributes:
        clock: times the current lap.
        counter: counts samples and tokens.
        warmup: measures phases and FLOPs in the warm-up lap.
        run_dir: the directory of the run; None: it can't be written, or another rank writes it.
        record: the run's record; None on ranks other than 0.
        num_laps: number of laps that have ended.
        batch_size: number of samples of the first batch; None: unknown.
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
            self.run_dir, self.record = self._start_record(timer, job)
        self.recorder = LapRecorder(self.run_dir, rank)
        self.counter = BatchCounter(settings, guard, training.num_loaders > 1)
        warmup_laps = settings.warmup_laps
        if training.num_epochs == 1 and settings.every is None:
            warmup_laps = 0  # the only lap must count
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

    def _start_record(self, timer: Timer, job: HydraJob | None) -> tuple[Path | None, RunRecord]:
        """Return the run's directory and its record; only on rank 0."""
        run_dir = self._reserve_directory(job)
        return run_dir, new_record(timer, self.settings, self.training, self.device, self.rank, run_dir)

    def _reserve_directory(self, job: HydraJob | None) -> Path | None:
        try:
            return reserve(self.settings, job)
        except (UserError, OSError) as error:
            self.guard.mark_missing("run.json", str(error))
            return None

    def warn_if_every_is_too_large(self) -> None:
        """Warn if the training ends before its first lap does."""
        every, num_batches = self.settings.every, self.training.num_batches
        if self.rank.is_first and every is not None and num_batches is not None and every > num_batches:
            log.warning(
                "laptime: every=%d: the training has only %d batches, so no lap will be complete. Pass at most half.",
                every,
                num_batches,
            )

    # Laps.

    @property
    def is_warmup(self) -> bool:
        """Whether the current lap is a warm-up."""
        return self._num_warmup_laps < self.warmup_laps

    @property
    def is_over(self) -> bool:
        """Whether the last step of the current lap is done."""
        return self._is_over and self.clock.is_running

    @property
    def is_timing(self) -> bool:
        """Whether the clock is running and not paused."""
        return self.clock.is_running and not self.clock.is_paused

    @property
    def lap_is_full(self) -> bool:
        """Whether the current batch is the last one of a lap of `every` batches."""
        return self.settings.every is not None and self.clock.num_batches + 1 >= self.settings.every

    def start_lap(self, is_partial: bool = False) -> None:
        """Start a lap, before its first batch is requested.

        Args:
            is_partial: another run trained the start of the epoch, so the lap isn't counted.
        """
        self._is_partial, self._is_over, self._num_pauses = is_partial, False, 0
        if self._started_at is None:
            self._started_at = time.perf_counter()
        self.clock.start()

    def pause(self) -> None:
        """Exclude the time until `resume` from the lap. Pauses may be nested."""
        self._num_pauses += 1
        if self.is_timing:
            self.clock.pause()
            self.warmup.pause()

    def resume(self) -> None:
        """End a pause."""
        self._num_pauses = max(0, self._num_pauses - 1)
        if not self._num_pauses and not self._is_over and self.clock.is_paused:
            self.warmup.resume()
            self.clock.resume()

    def close_lap(self) -> None:
        """Stop the clock after the last step of the lap; `end_lap` follows."""
        self._is_over = True
        self.clock.pause()

    def batch_begins(self) -> None:
        """Called before a batch is trained on."""
        if self.is_warmup:
            self.warmup.batch_begins()

    def batch_ends(self, batch: Any, loss: Tensor | None = None) -> None:
        """Count a batch that has been trained on."""
        self.count(self.counter.samples(batch), self.counter.tokens(batch), loss)

    def count(self, samples: int | None, tokens: Any, loss: Tensor | None = None) -> None:
        """Count a batch, given its numbers of samples and tokens."""
        if self.batch_size is None:
            self.batch_size = samples
        self.clock.count(samples, tokens, loss)
        self.warmup.batch_ends(samples)

    def end_lap(self, number: int | None = None) -> None:
        """End the lap. `write_lap` writes it later, while no lap is timed.

        Args:
            number: the number of the epoch; None: number the laps.
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
        """Return the optimizer steps of the lap.

        An epoch's last step may have fewer batches. Two laps of batches may share a step.
        """
        num_batches = self.clock.num_batches
        return -(-num_batches // per_step) if self.settings.every is None else num_batches / per_step

    def drop_lap(self) -> None:
        """Discard an incomplete lap."""
        self.clock.drop()
        self.warmup.end()

    def write_lap(self, scores: Scores) -> tuple[Epoch, float | None] | None:
        """Write the last lap with its scores.

        Returns:
            The lap over all ranks and its energy in joules (None: not measured), on rank 0. None on other ranks, or if
            there is no lap to write.

        Raises:
            MissingRanks: another rank sends no value (see `RankGroup.gather`); only on rank 0.
        """
        if self._pending is None:
            return None
        lap, self._pending = self._pending, None
        scores = replace(scores, train_loss=lap.loss if scores.train_loss is None else scores.train_loss)
        if (logged := self.settings.logged_score) is None:
            scores = replace(scores, train_score=scores.train_accuracy, val_score=scores.val_accuracy)
        elif logged.score == ACCURACY:
            scores = replace(scores, train_accuracy=scores.train_score, val_accuracy=scores.val_score)
        if lap.num_samples is None:
            reason = self.guard.missing.get(
                "samples",
                "the tensors of a batch differ in their first dimension, so its samples can't be counted. Pass "
                "samples=, a function that returns the number of samples of a batch",
            )
            self.guard.mark_missing("timing.samples_per_s", reason, warn="samples" not in self.guard.missing)
        if lap.num_tokens is None:
            reason = self.guard.missing.get("tokens", "the batches were not recognized as text. Pass tokens=")
            self.guard.mark_missing("timing.tokens_per_s", reason, warn=False)
        if self.rank.world_size > 1 and self.warmup.ddp is None:
            reason = "it is only measured with DistributedDataParallel"
            self.guard.mark_missing("communication", reason, warn=False)
        rank_lap = self.recorder.rank_lap(lap, scores)
        gathered = self.ranks.gather(f"lap {self.num_laps}", (rank_lap, os.getpid()))
        rank_laps = with_mean_scores([lap_of_rank for lap_of_rank, _ in gathered])
        try:
            epoch = self.recorder.add(lap, rank_laps)
        except OSError as error:  # e.g. the disk is full or the directory was deleted
            self.guard.mark_missing("epochs.csv", format_os_error(error))
            self.recorder.run_dir = None
            epoch = combine_ranks([lap_of_rank.row for lap_of_rank in rank_laps])
        if self.record is None:
            return None
        filled(self.record.strategy).rank_pids = [pid for _, pid in gathered]
        note = "partial, not counted" if self._is_partial else "warm-up, not counted" if lap.is_warmup else ""
        score = None if logged is None else logged.score
        self._say(lap_line(epoch, self._total_laps, self._remaining_s(), note, score))
        if time.monotonic() >= self._next_update_at:
            self._update()
        return epoch, self.recorder.joules(rank_laps)

    def _say(self, line: str) -> None:
        """Show the line of a lap."""
        print_line(line)

    @property
    def _total_laps(self) -> int | None:
        every, training = self.settings.every, self.training
        if every is None:
            return training.num_epochs
        return None if training.num_batches is None else self.first_lap + training.num_batches // every

    def _remaining_s(self) -> float | None:
        """Return the estimated seconds until the end of the training; None before the end of the first lap."""
        training = self.training
        if self.num_laps != 1 or self._started_at is None or not training.num_batches or not self._num_batches:
            return None
        fraction_done = self._num_batches / training.num_batches
        elapsed_s = time.perf_counter() - self._started_at
        return elapsed_s * (1 / fraction_done - 1) if fraction_done < 1 else None

    # The record, on rank 0.

    def _update(self) -> None:
        """Update and write the record. After short laps it is skipped, so that it takes at most a tenth of the time."""
        before = time.monotonic()
        self.refresh()
        self._write()
        self._next_update_at = time.monotonic() + 10 * (time.monotonic() - before)

    def refresh(self) -> None:
        """Update the sections of the record that are computed from the laps."""
        update_record(self)

    def _write(self) -> None:
        record, run_dir = self.record, self.run_dir
        if record is not None and run_dir is not None:
            record.missing = _NEVER_MEASURED | self.guard.missing
            self.guard.attempt("run.json", lambda: record.write(run_dir))

    # The end.

    def abandon(self, reason: str) -> None:
        """Stop timing after an error of the timer, and record it."""
        self.clock.drop()
        self.ranks.announce_failure()
        self.end("failed", RunError(type="TimerFailed", message=reason))

    def measure_peak(self, optimizer_bytes: int) -> None:
        """Measure the fastest matrix product on all ranks concurrently, and compute the MFU."""
        if not self.settings.peak:
            self.guard.mark_missing("peak", "peak=False", warn=False)
        elif self.training.precision not in TRAINER_DTYPES:
            self.guard.mark_missing("peak", f"it can't be measured for precision {self.training.precision}")
        elif self.num_laps:
            self.refresh()
            self.warmup.close()  # before the MFU, which needs the reason why FLOPs were not counted
            self.guard.attempt("peak", lambda: measure_peak(self, optimizer_bytes))

    def note_memory(self) -> None:
        """Record the peak memory of the processes whose peak grew during the training."""
        peak = peak_rss_bytes()
        peaks = self.ranks.gather("memory", peak if peak > self._rss_before else 0)
        if self.record is not None:
            resources = self.record.resources
            resources.peak_rss_bytes = max(resources.peak_rss_bytes or 0, sum(peaks)) or None

    def note_test(self, loss: float | None, accuracy: float | None, score: float | None, num_test: int = 0) -> None:
        """Record the scores of a test after the training.

        Args:
            score: the value of the score that the user has named.
            num_test: number of samples of the test set; 0: unknown.
        """
        if self.record is not None:
            filled(self.record.dataset).num_test = num_test
            result, logged = self.record.result, self.settings.logged_score
            result.test_loss, result.test_accuracy, result.test_score = loss, accuracy, score
            if logged is None:
                result.test_score = accuracy
            elif logged.score == ACCURACY:
                result.test_accuracy = score
            note_score(self.record)
            self._write()

    def _require_score(self, record: RunRecord) -> None:
        """Warn if the training never logged the score that the user has named."""
        logged, result = self.settings.logged_score, record.result
        if logged is None or self.num_laps == 0 or logged.metric in logged.names("test"):
            return
        if result.train_score is None and result.val_score is None:
            self.guard.mark_missing("result.val_score", f"the training logged no {logged.metric}, which score= names")

    def end(self, status: Status, error: RunError | None = None, reason: str = "epochs") -> None:
        """Write how the run ended, and print the summary.

        Args:
            reason: the reason why a completed training stopped: epochs, early_stopping or callback.
        """
        record = self.record
        self.warmup.end()
        with contextlib.suppress(Exception):  # it may be what failed
            self.refresh()
        self.warmup.close()
        if record is None or record.status != "running":
            return
        if error is not None:
            error.message = mask_text(error.message)
        record.result.stop_reason = reason if status == "completed" else None
        if status == "completed":
            self._require_score(record)
        record.end_attempt(status, error)
        self._write()
        for line in summary_lines(record, self.run_dir if "run.json" not in self.guard.missing else None):
            print_line(line)
        if self.run_dir is not None:
            release(self.run_dir)
        if status == "completed" and record.seed is None and record.timing.epoch_time_s is not None:
            log.warning(
                "laptime: the seed of this run is unknown, so two runs with the same seed may count as repeats. Call "
                "seed_everything(...) or pass seed=."
            )
