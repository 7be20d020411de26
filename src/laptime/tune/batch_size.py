"""The batch size by trying it: real steps of the run's own model, until memory, time or data end it."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import psutil
import torch

from laptime.config.schema import Config
from laptime.data.datamodule import DataModule
from laptime.errors import TrainingFailed, is_out_of_memory
from laptime.lap.clock import usage
from laptime.lap.quality import Quality
from laptime.lap.timed_loader import Batch
from laptime.machine.device import Device
from laptime.machine.hardware import available_memory_bytes
from laptime.machine.memory import peak_rss_bytes, reset_peak_rss
from laptime.measure.latency import Disturbances
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.text import byte_size
from laptime.training.build import build_data, build_module, build_network, network_name
from laptime.training.capabilities import HasStepper

_FIRST = 16
# Steps of a trial are timed for at least so long, and there are at least so many of them.
_TIMED_S, _TIMED_STEPS = 0.5, 3
# What is left free for what a run needs besides its steps: evaluation, a checkpoint, fragments.
_MARGIN = 0.1
# Between the largest that fits and the smallest that doesn't the search ends within this share.
_FINENESS = 8
# Batch sizes of which the speed is within this share of the best are as good as that.
_AS_FAST = 0.05
_NOTHING_FITS = "not even one sample at a time fits into memory. Use a smaller model or smaller images."


@dataclass(frozen=True)
class Trial:
    """A few steps with one batch size.

    Attributes:
        batch_size: samples per optimizer step.
        step_s: seconds of a step, the median, data included; None: it did not fit.
        samples_per_s: batch_size / step_s.
        memory_bytes: the peak: of tensors on an accelerator, of the process on the CPU.
        refused: why it was not, or could not be, tried; empty: it was.
    """

    batch_size: int
    step_s: float | None
    samples_per_s: float | None
    memory_bytes: int | None
    refused: str = ""

    @property
    def fits(self) -> bool:
        return self.step_s is not None


@dataclass(frozen=True)
class Found:
    """What the search has found.

    Attributes:
        of_what: model and data set, in words.
        trials: in the order in which they were made.
        device: that trained.
        budget_bytes: of memory; None: not known.
        ended_by: memory, data (the whole training set is one batch) or time.
        largest: batch size that fits.
        fast: the smallest batch size that is about as fast as the fastest.
        quality: of the times, by what else the machine did meanwhile.
    """

    of_what: str
    trials: tuple[Trial, ...]
    device: Device
    budget_bytes: int | None
    ended_by: str
    largest: int
    fast: int
    quality: Quality


def find(config: Config, device: Device, limit_s: float, note: Callable[[Trial], None]) -> Found:
    """Double the batch size until it does not fit, then narrow that down.

    A size that would not fit, as the ones before it foretell, is not tried: on the CPU nothing would stop it but the
    system, by ending the process.

    Args:
        config: of a run; its batch_size is not looked at.
        device: that trains.
        limit_s: seconds after which no further trial starts, as far as those before it foretell its time.
        note: is told each trial as it ends.

    Raises:
        TrainingFailed: not even one sample fits.
        UserError: data or model can't be built.
    """
    start = time.monotonic()
    single = replace(config.training, batch_size=1, batch_scope="per_rank")
    data = build_data(replace(config, training=single), device, Rank())
    search = _started(config, device, data)
    trials: list[Trial] = []
    machine = Disturbances(lambda: usage()[0])

    def fits(batch_size: int) -> bool:
        trials.append(search.attempt(batch_size, trials))
        note(trials[-1])
        return trials[-1].fits

    def is_too_late(batch_size: int) -> bool:
        last = trials[-1]
        return time.monotonic() - start + search.last_trial_s * batch_size / last.batch_size > limit_s

    largest, too_large, ended_by = 0, data.num_train + 1, "data"
    batch_size = min(_FIRST, data.num_train)
    while batch_size > largest:
        if fits(batch_size):
            largest = batch_size
            batch_size = min(2 * batch_size, data.num_train)
            if batch_size > largest and is_too_late(batch_size):
                ended_by = "time"
                break
        else:
            too_large, ended_by = batch_size, "memory"
            break
    while ended_by == "memory" and too_large - largest > max(1, largest // _FINENESS):
        middle = (largest + too_large) // 2
        if largest and is_too_late(middle):
            break
        if fits(middle):
            largest = middle
        else:
            too_large = middle
    if not largest:
        raise TrainingFailed(_NOTHING_FITS)
    quality, fast = machine.quality(), fast_enough(trials)
    return Found(search.of_what, tuple(trials), device, search.budget_bytes, ended_by, largest, fast, quality)


def _started(config: Config, device: Device, data: DataModule) -> "_Search":
    try:
        return _Search(config, device, data, memory_budget(device))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise TrainingFailed(_NOTHING_FITS) from error
        raise


def fast_enough(trials: list[Trial]) -> int:
    """The smallest batch size that is about as fast as the fastest, in samples per second."""
    speeds = {trial.batch_size: trial.samples_per_s for trial in trials if trial.samples_per_s is not None}
    return min(size for size, speed in speeds.items() if speed >= (1 - _AS_FAST) * max(speeds.values()))


def memory_budget(device: Device) -> int | None:
    """What this process may take of the device's memory, in bytes, its own included; None: not known."""
    if device.used == "cpu":
        return int((1 - _MARGIN) * (psutil.Process().memory_info().rss + available_memory_bytes()))
    share, total, own = device.memory_use()
    return int((1 - _MARGIN) * (total - share * total + own)) if total else None


class _Search:
    """Makes trials, each from the same weights."""

    def __init__(self, config: Config, device: Device, data: DataModule, budget_bytes: int | None) -> None:
        self.config = config
        self.device = device
        self.data = data
        self.budget_bytes = budget_bytes
        self.last_trial_s = 0.0
        self._network = build_network(config.model, data.data)
        self.of_what = f"{network_name(self._network)} on {data.data.name}"
        self._weights = {name: value.clone() for name, value in self._network.state_dict().items()}

    def attempt(self, batch_size: int, before: list[Trial]) -> Trial:
        wanted = foretold_bytes([trial for trial in before if trial.fits], batch_size)
        if wanted is not None and self.budget_bytes is not None and wanted > self.budget_bytes:
            refused = f"would take {byte_size(wanted, 'GB')}, as the others foretell"
            return Trial(batch_size, None, None, wanted, refused)
        start = time.monotonic()
        try:
            return self._steps(batch_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return Trial(batch_size, None, None, None, "out of memory")
        finally:
            self._network.zero_grad()
            if self.device.used != "cpu":
                torch.accelerator.empty_cache()
            self.last_trial_s = time.monotonic() - start

    def _steps(self, batch_size: int) -> Trial:
        reset_peak_rss()
        self.device.reset_peak_memory()
        self._network.load_state_dict(self._weights)
        self.data.batch_size = batch_size
        module = build_module(self.config, self._network, self.device, StopRequest(), {}, Rank(), 1)
        module.to(self.device.torch_device).train()
        if self.config.training.compile:
            module.stepper.compile()
        optimizer = module.make_optimizer(module.network.parameters())
        batches = self._batches()
        _step(module, optimizer, batches)  # memory and code are made ready
        times: list[float] = []
        while sum(times) < _TIMED_S or len(times) < _TIMED_STEPS:
            start = self._now()
            _step(module, optimizer, batches)
            times.append(self._now() - start)
        self.data.teardown("fit")
        step_s = statistics.median(times)
        peak_bytes = self.device.peak_memory_bytes()
        memory_bytes = peak_rss_bytes() if peak_bytes is None else peak_bytes
        return Trial(batch_size, step_s, batch_size / step_s, memory_bytes)

    def _batches(self) -> Iterator[Batch]:
        """Whole batches of one epoch after the other."""
        for epoch in itertools.count():
            loader = self.data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            for step_group in loader.pipeline.step_groups():
                yield from (batch for batch in step_group if len(batch[1]) == self.data.batch_size)

    def _now(self) -> float:
        self.device.synchronize()
        return time.perf_counter()


def _step(module: HasStepper, optimizer: torch.optim.Optimizer, batches: Iterator[Batch]) -> None:
    module.stepper.take(optimizer, *next(batches))


def foretold_bytes(fitted: list[Trial], batch_size: int) -> int | None:
    """What a batch size would take: memory grows by as much for each sample. None: fewer than two to tell from."""
    known = sorted((trial.batch_size, trial.memory_bytes) for trial in fitted if trial.memory_bytes is not None)
    if len(known) < 2:
        return None
    (size, num_bytes), (larger, more_bytes) = known[-2:]
    return int(more_bytes + max(0.0, (more_bytes - num_bytes) / (larger - size)) * (batch_size - larger))
