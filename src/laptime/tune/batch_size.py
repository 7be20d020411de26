"""Finds a batch size by training a few steps of the run's model with growing sizes."""

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
# Minimum time and number of timed steps of a trial.
_TIMED_S, _TIMED_STEPS = 0.5, 3
# Fraction of the memory to leave free, for evaluation, checkpoints and fragmentation.
_MARGIN = 0.1
# The search ends when the smallest size that doesn't fit is within 1/8 of the largest that does.
_RESOLUTION = 8
# A batch size is about as fast as the fastest if its samples/s are within this fraction of the best.
_SPEED_TOLERANCE = 0.05
_NOTHING_FITS = "not even one sample at a time fits into memory. Use a smaller model or smaller images."


@dataclass(frozen=True)
class Trial:
    """A few steps with one batch size.

    Attributes:
        batch_size: samples per optimizer step.
        step_s: median seconds per step, data loading included; None: it did not fit.
        samples_per_s: batch_size / step_s.
        memory_bytes: peak memory: of the tensors on an accelerator, or of the process on the CPU.
        refused: the reason why it was not tried or failed; empty: it was tried and fits.
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
class BatchSizeResult:
    """The result of the search.

    Attributes:
        subject: model and data set, e.g. `mlp on mnist`.
        trials: all trials, in the order in which they ran.
        device: the device of the trials.
        budget_bytes: memory that the trials may use; None: not known.
        ended_by: what ended the search: memory, data (the whole training set is one batch) or time.
        largest: the largest batch size that fits.
        fast: the smallest batch size that is about as fast as the fastest.
        quality: the grade of the timings, with its reasons.
    """

    subject: str
    trials: tuple[Trial, ...]
    device: Device
    budget_bytes: int | None
    ended_by: str
    largest: int
    fast: int
    quality: Quality


def find(config: Config, device: Device, limit_s: float, report: Callable[[Trial], None]) -> BatchSizeResult:
    """Double the batch size until it does not fit, then bisect.

    A size that is predicted not to fit is not tried: on the CPU the system would kill the process.

    Args:
        config: the configuration of a run; its batch_size is ignored.
        device: the device to train on.
        limit_s: time limit in seconds. A trial does not start if it is predicted to end later.
        report: called after each trial.

    Raises:
        TrainingFailed: not even one sample fits.
        UserError: data or model can't be built.
    """
    start = time.monotonic()
    single = replace(config.training, batch_size=1, batch_scope="per_rank", max_steps=None, lap_steps=None)
    data = build_data(replace(config, training=single), device, Rank())
    search = _started(config, device, data)
    trials: list[Trial] = []
    machine = Disturbances(lambda: usage()[0])

    def fits(batch_size: int) -> bool:
        trials.append(search.attempt(batch_size, trials))
        report(trials[-1])
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
    while ended_by == "memory" and too_large - largest > max(1, largest // _RESOLUTION):
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
    return BatchSizeResult(search.subject, tuple(trials), device, search.budget_bytes, ended_by, largest, fast, quality)


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
    return min(size for size, speed in speeds.items() if speed >= (1 - _SPEED_TOLERANCE) * max(speeds.values()))


def memory_budget(device: Device) -> int | None:
    """Bytes of the device's memory that this process may use, including what it uses now; None: not known."""
    if device.used == "cpu":
        return int((1 - _MARGIN) * (psutil.Process().memory_info().rss + available_memory_bytes()))
    used_fraction, total, process_bytes = device.memory_use()
    return int((1 - _MARGIN) * (total - used_fraction * total + process_bytes)) if total else None


class _Search:
    """Runs trials, each from the same initial weights."""

    def __init__(self, config: Config, device: Device, data: DataModule, budget_bytes: int | None) -> None:
        self.config = config
        self.device = device
        self.data = data
        self.budget_bytes = budget_bytes
        self.last_trial_s = 0.0
        self._network = build_network(config.model, data.data)
        self.subject = f"{network_name(self._network)} on {data.data.name}"
        self._weights = {name: value.clone() for name, value in self._network.state_dict().items()}

    def attempt(self, batch_size: int, before: list[Trial]) -> Trial:
        needed_bytes = predicted_bytes([trial for trial in before if trial.fits], batch_size)
        if needed_bytes is not None and self.budget_bytes is not None and needed_bytes > self.budget_bytes:
            refused = f"not tried: predicted to need {byte_size(needed_bytes, 'GB')}"
            return Trial(batch_size, None, None, needed_bytes, refused)
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
        _step(module, optimizer, batches)  # warm-up: allocates memory, compiles
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
        """Yield batches of full size, epoch after epoch."""
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


def predicted_bytes(fitted: list[Trial], batch_size: int) -> int | None:
    """The memory that a batch size needs, extrapolated linearly from the two largest trials; None: fewer than two."""
    sizes = sorted((trial.batch_size, trial.memory_bytes) for trial in fitted if trial.memory_bytes is not None)
    if len(sizes) < 2:
        return None
    (size, num_bytes), (larger, more_bytes) = sizes[-2:]
    return int(more_bytes + max(0.0, (more_bytes - num_bytes) / (larger - size)) * (batch_size - larger))
