"""Measures the overhead of Lightning and Laptime: after each epoch, a bare PyTorch loop trains the same epoch again."""

import copy
import logging
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from laptime.data.order import epoch_seed
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.timed_loader import Batch, TimedLoader, batch_sizes
from laptime.machine.device import Device
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.record import schema
from laptime.training.capabilities import Retrainable, missing_attributes

log = logging.getLogger(__name__)

# The bare loop sums the losses of an epoch in float32; apart from that, they are equal.
_LOSS_TOLERANCE = 1e-3


class BareLoop(Callback):
    """Trains a copy of the network in a plain loop, one epoch after each epoch of the run.

    Initial weights, batches, optimizer settings, precision and DDP are those of the run, so the losses are the same.
    The run's network, optimizer and random state are not changed. The time of the bare loop is in none of the run's
    times, but the run's peak memory includes the copy.

    An epoch is repeated when the next one starts, i.e. after its validation and checkpoint.

    Args:
        device: is synchronized at both ends of an epoch.
        rank: this process.
        stop: is checked between two steps.
        timer: makes the laps of the run.

    Attributes:
        measured: the section of the record.
    """

    def __init__(self, device: Device, rank: Rank, stop: StopRequest, timer: EpochTimer) -> None:
        self.device = device
        self.rank = rank
        self.stop = stop
        self.timer = timer
        self.measured = schema.BareLoop()
        self._epochs_s: list[tuple[float, float]] = []  # of the bare loop, and of the run
        self._settings: list[dict[str, Any]] = []
        self._schedule_state: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, Retrainable):
            if self.rank.is_first:
                log.warning("measure.bare_loop: not measured: %s", missing_attributes(pl_module, Retrainable))
            return
        network = copy.deepcopy(pl_module.stepper.network)
        if pl_module.stepper.is_compiled:
            network.compile(dynamic=False)
        self._network = pl_module.stepper.wrap(network)
        self._optimizer = pl_module.make_optimizer(network.parameters())
        self._optimizer.load_state_dict(copy.deepcopy(trainer.optimizers[0].state_dict()))
        self._scaler = copy.deepcopy(pl_module.stepper.scaler)
        # The settings that a scheduler changes per epoch are copied. A scheduler per step must run within the epoch.
        self._schedule = pl_module.make_scheduler(self._optimizer) if pl_module.stepper.schedule is not None else None
        self._task = copy.deepcopy(pl_module.stepper.task)
        self._average = pl_module.make_average(network)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, Retrainable):
            return
        self._repeat_last_epoch(trainer, pl_module)
        self._settings = [_without_weights(group) for group in trainer.optimizers[0].param_groups]
        schedule = pl_module.stepper.schedule
        self._schedule_state = {} if schedule is None else copy.deepcopy(schedule.state_dict())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Retrainable):
            self._repeat_last_epoch(trainer, pl_module)

    def _repeat_last_epoch(self, trainer: pl.Trainer, module: Retrainable) -> None:
        loader, lap = trainer.train_dataloader, self.timer.lap
        assert isinstance(loader, TimedLoader)
        if lap is None:  # no epoch has ended, or it was interrupted
            return
        if self.rank.any_rank(lap.num_samples != len(loader.sampler)):  # a callback skipped batches
            if self.rank.is_first and not self._epochs_s:
                lap_name = f"{loader.sampler.lap_word} {lap.number + 1}"
                log.warning("measure.bare_loop: not measured: a callback skipped batches of %s", lap_name)
            return
        started_at = time.perf_counter()
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(copy.deepcopy(settings))
        if self._schedule is not None:
            self._schedule.load_state_dict(self._schedule_state)
        epoch_now = loader.sampler.epoch
        loader.sampler.set_epoch(lap.number)
        with _preserved_random_state():
            seed = epoch_seed(module.seed, lap.number, self.rank.rank)
            torch.manual_seed(seed)
            self._task.start_epoch(seed)
            self.device.synchronize()
            self.rank.barrier()
            before = time.perf_counter()
            loss_sum = self._epoch(module, loader.pipeline.batches())
            self._average.after_epoch(lap.number)
            self.device.synchronize()
            bare_s = time.perf_counter() - before
        loader.sampler.set_epoch(epoch_now)
        if not lap.is_warmup:
            loss_sum, num_samples = self.rank.all_reduce_sum([loss_sum, lap.num_samples or 0])
            bare_times_s, run_times_s = zip(*self.rank.gather((bare_s, lap.time_s)), strict=True)
            self._epochs_s.append((max(bare_times_s), max(run_times_s)))
            self._set_measured(loader, loss_sum / num_samples)
            self._compare(loss_sum / num_samples, module.train_sums.means(self.rank).loss)
        self.timer.apart_s += time.perf_counter() - started_at

    def _epoch(self, module: Retrainable, batches: Iterable[Batch]) -> float:
        """Train one epoch in an efficient hand-written loop, and return the sum of the losses.

        Metrics stay on the device until the end of the epoch.
        """
        network, optimizer, scaler, task = self._network, self._optimizer, self._scaler, self._task
        network.train()
        loss_sum = torch.zeros((), device=self.device.torch_device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device.torch_device)
        for inputs, targets in batches:
            if self.stop.requested:
                self.stop.act()
            inputs, mixed_targets, lam = task.mix(inputs, targets)
            with module.stepper.autocast():
                logits = network(inputs)
                loss = task.training_loss(logits, targets, mixed_targets, lam)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if module.stepper.gradient_clip_norm is not None:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), module.stepper.gradient_clip_norm)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if self._schedule is not None:
                self._schedule.step()
            self._average.after_step()
            optimizer.zero_grad()
            loss_sum += loss.detach() * len(targets)
            if (batch_hits := task.num_hits(logits.detach(), targets)) is not None:
                hits += batch_hits
        hits.item()
        return float(loss_sum)

    def _compare(self, loss: float, run_loss: float) -> None:
        if self.rank.is_first and abs(loss - run_loss) > _LOSS_TOLERANCE * abs(run_loss):
            log.warning(
                "measure.bare_loop: the training loss is %.5f in the bare loop but %.5f in the run. They did not do "
                "the same work, so the overhead is not meaningful",
                loss,
                run_loss,
            )

    def _set_measured(self, loader: TimedLoader, loss: float) -> None:
        ratios = [run_s / bare_s - 1 for bare_s, run_s in self._epochs_s]
        num_steps = len(batch_sizes(len(loader.sampler), loader.pipeline.batch_size))
        self.measured = schema.BareLoop(
            epoch_time_s=statistics.median(bare_s for bare_s, _ in self._epochs_s),
            overhead=statistics.median(ratios),
            overhead_min=min(ratios),
            overhead_max=max(ratios),
            overhead_s_per_step=statistics.median((run_s - bare_s) / num_steps for bare_s, run_s in self._epochs_s),
            num_epochs=len(ratios),
            train_loss=loss,
        )


def _without_weights(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer's group: learning rate, momentum and others that a scheduler may change."""
    return copy.deepcopy({name: value for name, value in group.items() if name != "params"})


@contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch (CPU) on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
