"""Records the laps of any training: writes the rows of epochs.csv and the sections of run.json computed from them."""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from laptime.lap.clock import Lap
from laptime.machine.counters import delta, percent_by_core
from laptime.machine.energy import EnergyMeter
from laptime.ranks.rank import Rank
from laptime.record.epochs import Epoch, EpochRow, combine_ranks, combine_rows
from laptime.record.files import append_epochs
from laptime.record.run_record import RunRecord
from laptime.record.schema import EpochNoise

_SCORES = ("train_loss", "train_accuracy", "train_score", "val_loss", "val_accuracy", "val_score")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores at the end of a lap, over all ranks; None: unknown.

    Attributes:
        train_loss, val_loss: mean losses.
        train_accuracy, val_accuracy: fractions of correct predictions, from 0 to 1.
        train_score, val_score: values of the run's score.
        lr: learning rate of the optimizer's first parameter group.
    """

    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    train_score: float | None = None
    val_score: float | None = None
    lr: float | None = None


def scalars_of(epoch: Epoch, tags: Mapping[str, str], joules: float | None) -> dict[str, float]:
    """Return the figures of a lap for the loggers, by tag. Figures that are None are left out.

    Args:
        tags: the attribute of Epoch for each tag.
        joules: energy of the lap; None: not measured.
    """
    scalars = {tag: value for tag, name in tags.items() if (value := getattr(epoch, name)) is not None}
    return scalars if joules is None else scalars | {"energy/joules": joules}


@dataclass(frozen=True)
class RankLap:
    """A lap on one rank, as sent to rank 0.

    Attributes:
        row: the row for epochs.csv.
        node: index of the rank's machine.
        cpu_s: CPU seconds of the rank from the lap's start to its end, pauses included.
        energy_joules: energy that the rank's machine used; None: not measured, or by another rank.
        num_steps: optimizer steps; None: unknown.
    """

    row: EpochRow
    node: int
    cpu_s: float
    energy_joules: float | None
    num_steps: float | None


class LapRecorder:
    """Keeps and writes the laps of a run.

    Args:
        run_dir: the folder for epochs.csv; None: it can't be written.
        rank: this process; rank 0 writes for all.

    Attributes:
        rows: the rows of the ranks that this process knows, in order; on rank 0 those of all ranks.
        num_steps: optimizer steps of every counted lap, where they are known.
        noise: other activity of this machine during each lap; on rank 0.
        energy_joules: energy of every counted lap in which all machines were measured; on rank 0.
        percent_by_core: use of each core of this machine by all processes, for every counted lap; on rank 0.
    """

    def __init__(self, run_dir: Path | None, rank: Rank) -> None:
        self.run_dir = run_dir
        self.rank = rank
        self.rows: list[EpochRow] = []
        self.num_steps: list[float] = []
        self.noise: list[EpochNoise] = []
        self.energy_joules: list[float] = []
        self.percent_by_core: list[list[float]] = []

    def rank_lap(self, lap: Lap, scores: Scores) -> RankLap:
        """Return a lap of this rank, to be sent to rank 0."""
        row = EpochRow(
            attempt=self.rank.attempt,
            epoch=lap.number,
            rank=self.rank.rank,
            is_warmup=lap.is_warmup,
            epoch_time_s=lap.time_s,
            num_samples=lap.num_samples,
            samples_per_s=lap.samples_per_s,
            data_wait_s=lap.data_wait_s,
            train_loss=scores.train_loss,
            train_accuracy=scores.train_accuracy,
            val_loss=scores.val_loss,
            val_accuracy=scores.val_accuracy,
            lr=scores.lr,
            cpu_percent=lap.cpu_percent,
            rss_bytes=lap.rss_bytes,
            device_memory_bytes=lap.device_memory_bytes,
            num_tokens=lap.num_tokens,
            num_batches=lap.num_batches,
            apart_s=lap.apart_s,
            train_score=scores.train_score,
            val_score=scores.val_score,
        )
        return RankLap(row, self.rank.node, lap.all_cpu_s, lap.energy_joules, lap.num_steps)

    def add(self, lap: Lap, rank_laps: Sequence[RankLap]) -> Epoch:
        """Keep a lap. Rank 0 also writes it, and records the machine's other activity.

        Args:
            lap: the lap of this rank.
            rank_laps: the laps of all ranks in rank order on rank 0; on other ranks those that they have.

        Returns:
            The lap over all these ranks.

        Raises:
            OSError: epochs.csv can't be written.
        """
        rows = [rank_lap.row for rank_lap in rank_laps]
        self.rows += rows
        if not lap.is_warmup and lap.num_steps is not None:
            self.num_steps.append(lap.num_steps)
        if self.rank.is_first:
            self._note_machine(lap, rank_laps)
            if self.run_dir is not None:
                append_epochs(self.run_dir, rows)
        return combine_ranks(rows)

    def _note_machine(self, lap: Lap, rank_laps: Sequence[RankLap]) -> None:
        cpu_s = sum(rank_lap.cpu_s for rank_lap in rank_laps if rank_lap.node == self.rank.node)
        noise = delta(lap.before, lap.after, cpu_s, os.cpu_count() or 1)
        self.noise.append(
            EpochNoise(attempt=self.rank.attempt, epoch=lap.number, is_warmup=lap.is_warmup, **asdict(noise))
        )
        if lap.is_warmup:
            return
        self.percent_by_core.append(percent_by_core(lap.before, lap.after))
        if (joules := self.joules(rank_laps)) is not None:
            self.energy_joules.append(joules)

    def joules(self, rank_laps: Sequence[RankLap]) -> float | None:
        """Return the energy of a lap on all machines; None: one of them was not measured."""
        joules = [rank_lap.energy_joules for rank_lap in rank_laps if rank_lap.energy_joules is not None]
        return sum(joules) if len(joules) == self.rank.num_nodes else None

    @property
    def epochs(self) -> list[Epoch]:
        """The laps over all ranks, in order. If several attempts trained an epoch, the last attempt counts."""
        return combine_rows(self.rows)

    @property
    def counted(self) -> list[Epoch]:
        """The laps that are no warm-up."""
        return _counted(self.epochs)

    def note_timing(self, record: RunRecord, warmup_epochs: int, num_steps: float | None = None) -> None:
        """Fill in the medians of the counted laps.

        Args:
            record: the record to fill in.
            warmup_epochs: the number of warm-up laps to record if there is no lap yet.
            num_steps: optimizer steps of a lap, if no counted lap has their number; None: unknown.
        """
        epochs, timing = self.epochs, record.timing
        counted = _counted(epochs)
        timing.warmup_epochs = len(epochs) - len(counted) if epochs else warmup_epochs
        if counted:
            timing.epoch_time_s = statistics.median(epoch.epoch_time_s for epoch in counted)
            samples, tokens, batches = (
                _median([getattr(epoch, name) for epoch in counted])
                for name in ("num_samples", "num_tokens", "num_batches")
            )
            steps = _median([*self.num_steps]) if self.num_steps else num_steps
            timing.samples_per_s = None if samples is None else samples / timing.epoch_time_s
            timing.tokens_per_s = None if tokens is None else tokens / timing.epoch_time_s
            timing.batches_per_s = None if batches is None else batches / timing.epoch_time_s
            timing.steps_per_s = None if steps is None else steps / timing.epoch_time_s
        straggler_delay = [epoch.straggler_delay for epoch in counted if epoch.straggler_delay is not None]
        timing.straggler_delay = statistics.median(straggler_delay) if straggler_delay else None

    def note_result(self, record: RunRecord) -> None:
        """Fill in the scores of the last lap."""
        if self.rows:
            last, result = self.rows[-1], record.result
            result.train_loss, result.train_accuracy = last.train_loss, last.train_accuracy
            result.val_loss, result.val_accuracy = last.val_loss, last.val_accuracy
            result.train_score, result.val_score = last.train_score, last.val_score

    def note_resources(self, record: RunRecord, energy: EnergyMeter | None) -> None:
        """Fill in memory, CPU and energy, as far as rank 0 knows them."""
        epochs, resources = self.epochs, record.resources
        counted = _counted(epochs)
        device_memory = [epoch.device_memory_bytes for epoch in epochs if epoch.device_memory_bytes is not None]
        joules = statistics.median(self.energy_joules) if self.energy_joules else None
        resources.peak_rss_bytes = max((epoch.rss_bytes for epoch in epochs), default=None)
        resources.peak_device_memory_bytes = max(device_memory, default=None)
        resources.cpu_percent = statistics.median(epoch.cpu_percent for epoch in counted) if counted else None
        by_core = [statistics.median(core) for core in zip(*self.percent_by_core, strict=True)]
        resources.cpu_percent_by_core = by_core or None
        resources.energy_joules = joules
        num_samples = counted[-1].num_samples if counted else None
        per_1000 = None if joules is None or not num_samples else joules * 1000 / num_samples
        resources.energy_joules_per_1000_samples = per_1000
        resources.energy_missing = energy.missing if energy is not None else None


def _counted(epochs: Sequence[Epoch]) -> list[Epoch]:
    return [epoch for epoch in epochs if not epoch.is_warmup]


def _median(counts: Sequence[float | None]) -> float | None:
    """The median; None: one of the counts is unknown."""
    numbers = [count for count in counts if count is not None]
    return statistics.median(numbers) if len(numbers) == len(counts) else None


def with_mean_scores(rank_laps: list[RankLap]) -> list[RankLap]:
    """Replace the scores of a lap's ranks, each over its own samples, by their means."""
    values = {name: [getattr(rank_lap.row, name) for rank_lap in rank_laps] for name in _SCORES}
    means: dict[str, Any] = {
        name: None if None in of_ranks else statistics.fmean(of_ranks) for name, of_ranks in values.items()
    }
    return [replace(rank_lap, row=replace(rank_lap.row, **means)) for rank_lap in rank_laps]
