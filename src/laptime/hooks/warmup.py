"""Measures the phases of some steps and the FLOPs of one step in the warm-up lap, which is left out of all figures."""

import sys
import time
from collections.abc import Callable
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from laptime.hooks.guard import Guard
from laptime.hooks.settings import Settings, Training
from laptime.lap.flops import FlopCounter
from laptime.lap.phases import PhaseClock, percentiles, typical, without_waiting
from laptime.machine.device import Device
from laptime.ranks.comm_hooks import bucket_bytes, comm_times, waiting_s
from laptime.record import schema
from laptime.record.run_record import RunRecord

# First batches that are skipped, in which torch allocates buffers and chooses algorithms.
_NUM_SKIPPED_BATCHES = 2
_MAX_DURATION_S, _MAX_STEPS, _MIN_STEPS = 1.0, 100, 5
# DDP's default: its timers run in one of 100 steps (torch 2.14).
_DDP_SAMPLE_RATE = 100


def _ignore() -> None:
    """Do nothing, in place of a function to call."""


class WarmupSteps:
    """Counts the FLOPs of one step of the warm-up lap, and then times the phases of some steps.

    Args:
        device: is synchronized at every boundary of a phase.
        settings, training: the arguments of the timer, and the facts about the training.
        guard: records why a figure is not measured.
        has_laps: whether there is a warm-up lap.

    Attributes:
        phases: times the phases of the current step; None: phases are not being timed.
        flops_per_batch: FLOPs of one batch on this rank; None: not counted.
        flops_samples: samples of the batch whose FLOPs were counted; None: unknown, or the user passed flops=.
        is_compiled: returns whether the training is compiled. Then FLOPs aren't counted, because counting would change
            how it runs.
        has_optimizer: whether the optimizer is timed as a phase of its own; if not, the backward pass includes it.
        on_begin, on_end: are called when the timing of phases starts and ends.
        ddp: the model whose timers measure how long a step waits for other ranks; None: there is none.
    """

    def __init__(self, device: Device, settings: Settings, training: Training, guard: Guard, has_laps: bool) -> None:
        self.device = device
        self.guard = guard
        self.phases: PhaseClock | None = None
        self.flops_per_batch: int | None = None
        self.flops_samples: int | None = None
        self.is_compiled: Callable[[], bool] = compiled_anything
        self.has_optimizer = True
        self.on_begin: Callable[[], None] = _ignore
        self.on_end: Callable[[], None] = _ignore
        self.ddp: DistributedDataParallel | None = None
        self._per_step = training.batches_per_step or 1
        self._counter: FlopCounter | None = None
        self._num_batches = 0
        self._num_in_step = 0
        self._until = 0.0
        self._waited_s: list[float] = []
        self._steps: list[dict[str, float]] = []
        self._measures_breakdown = settings.breakdown and has_laps
        self._counts_flops = settings.flops is True and has_laps
        if settings.flops is not True and settings.flops is not False:
            self.flops_per_batch = int(settings.flops)
        elif not self._counts_flops:
            reason = "FLOPs are counted in a warm-up lap, and there is none" if settings.flops else "flops=False"
            guard.mark_missing("model.flops_per_batch", reason, warn=False)
        if not self._measures_breakdown:
            reason = (
                "the phases are measured in a warm-up lap, and there is none"
                if settings.breakdown
                else "breakdown=False"
            )
            guard.mark_missing("breakdown", reason, warn=False)

    def flop_counter(self) -> FlopCounter | None:
        """Return the context that counts the FLOPs of the next warm-up batch; None: don't count them."""
        if not self._counts_flops or self._num_batches != _NUM_SKIPPED_BATCHES - 1:
            return None
        self._counts_flops = False
        if self.is_compiled():
            self.skip_flops("the model is compiled")
            return None
        return FlopCounter()

    def note_flops(self, counter: FlopCounter, samples: int | None) -> None:
        """Take the FLOPs of a batch from its counter.

        Args:
            samples: number of samples of the batch; None: unknown.
        """
        if counter.unknown:
            self.skip_flops(f"no formula for {', '.join(sorted(counter.unknown))}")
        elif not counter.total:
            self.skip_flops("no matrix product ran in this thread")
        else:
            self.flops_per_batch, self.flops_samples = counter.total, samples

    def skip_flops(self, reason: str) -> None:
        """Don't count FLOPs, and record why."""
        self._counts_flops = False
        self.guard.mark_missing("model.flops_per_batch", f"{reason}. Pass flops=", warn=False)

    def batch_begins(self) -> None:
        """Called before a batch of the warm-up lap is trained on."""
        if self._counter is not None:  # the previous batch has no end, because its pass was left: count this one
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._counts_flops = True
        self._counter = self.flop_counter()
        if self._counter is not None:
            self._counter.__enter__()

    def batch_ends(self, samples: int | None = None) -> None:
        """Called after the batch.

        Args:
            samples: number of samples of the batch; None: unknown.
        """
        self._num_batches += 1
        self._end_count(samples)

    def pause(self) -> None:
        """Exclude the time until `resume`."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self.phases is not None:
            self.phases.pause()

    def resume(self) -> None:
        """End a pause."""
        if self.phases is not None:
            self.phases.resume()
        if self._counter is not None:
            self._counter.__enter__()

    def _end_count(self, samples: int | None = None) -> None:
        if self._counter is not None:
            counter, self._counter = self._counter, None
            counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.note_flops(counter, samples)

    def next_batch(self) -> None:
        """End the previous step. Called before the next batch of the warm-up lap is requested."""
        if not self._measures_breakdown or self._num_batches < _NUM_SKIPPED_BATCHES:
            return
        if self.phases is None:
            self._until = time.perf_counter() + _MAX_DURATION_S
            if self.ddp is not None:
                self.ddp._set_ddp_runtime_logging_sample_rate(1)
            self.on_begin()
            self.phases = PhaseClock(self.device)
            return
        self._num_in_step += 1
        if self._num_in_step < self._per_step:
            return
        self._num_in_step = 0
        self.phases.end_step()
        if self.ddp is not None:
            self._waited_s.append(waiting_s(comm_times(self.ddp)))
        num = len(self.phases.steps)
        if num >= _MAX_STEPS or (num >= _MIN_STEPS and time.perf_counter() > self._until):
            self.end()

    def close(self) -> None:
        """Stop all measurements, and drop the references to the training."""
        self.end()
        if self._counts_flops:
            self.skip_flops(f"the warm-up lap has fewer than {_NUM_SKIPPED_BATCHES} steps")
        self.is_compiled, self.on_begin, self.on_end, self.ddp = compiled_anything, _ignore, _ignore, None

    def end(self) -> None:
        """Stop timing phases, because the lap is over or there are enough steps."""
        self._end_count()  # if an exception ended the step
        self._measures_breakdown = False
        if self.phases is None:
            return
        self._steps, self.phases = self.phases.steps, None
        self.on_end()
        if self.ddp is not None:
            self.ddp._set_ddp_runtime_logging_sample_rate(_DDP_SAMPLE_RATE)

    def update_record(self, record: RunRecord) -> None:
        """Fill in `breakdown` and, under DDP, `communication`."""
        if record.breakdown.step_s is not None or "breakdown" in self.guard.missing:
            return
        if len(self._steps) < _MIN_STEPS:
            reason = (
                f"the warm-up lap has {len(self._steps)} complete steps after its first {_NUM_SKIPPED_BATCHES + 1}; "
                f"at least {_MIN_STEPS} are needed"
            )
            self.guard.mark_missing("breakdown", reason, warn=False)
            return
        phases = ("data", "host_to_device", "forward", "backward", "optimizer", "rest")
        steps = [{phase: step.get(phase, 0.0) for phase in phases} for step in self._steps]
        if self._waited_s:
            steps = without_waiting(steps, self._waited_s, "backward")
        totals, seconds = [sum(step.values()) for step in steps], typical(steps)
        step_s = sum(seconds.values())
        if not self.has_optimizer:
            del seconds["optimizer"]
            reason = "no optimizer of torch.optim stepped, so backward_s includes the update of the weights"
            self.guard.mark_missing("breakdown.optimizer_s", reason, warn=False)
        record.breakdown = schema.Breakdown(
            **{f"{phase}_s": seconds.get(phase) for phase in schema.PHASES},
            step_s=step_s,
            **percentiles(totals),
            num_steps=len(totals),
        )
        if self.ddp is not None:
            sizes, waited_s = bucket_bytes(self.ddp), seconds["communication"]
            record.communication = schema.Communication(
                num_all_reduces_per_step=len(sizes),
                bytes_per_step=sum(sizes),
                step_s=step_s,
                compute_s=step_s - waited_s,
                exposed_s=waited_s,
                share=waited_s / step_s,
                num_steps=len(totals),
            )


def compiled_anything() -> bool:
    """Whether torch.compile has compiled anything in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"]["total"])


def is_compiled(module: Any) -> bool:
    """Whether a module or one of its submodules is compiled."""
    return any(
        type(submodule).__name__ == "OptimizedModule" or getattr(submodule, "_compiled_call_impl", None) is not None
        for submodule in module.modules()
    )
