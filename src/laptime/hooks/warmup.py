"""What is found out in the warm-up lap, which never counts: the phases of its steps, and the FLOPs of one of them."""

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
from laptime.ranks.comm_hooks import bucket_bytes, comm_times, exposed_s
from laptime.record import schema
from laptime.record.run_record import RunRecord

# Batches before anything is looked at: of the first, torch makes buffers and chooses algorithms.
_NUM_SKIPPED_BATCHES = 2
_MAX_DURATION_S, _MAX_STEPS, _MIN_STEPS = 1.0, 100, 5
# DDP's own clocks run in one of so many steps, unless told otherwise (torch 2.14).
_DDP_SAMPLE_RATE = 100


def _ignore() -> None:
    """Nobody listens."""


class WarmupSteps:
    """Takes some steps of the warm-up lap apart, after one in which FLOPs are counted.

    Args:
        device: is synchronized at every boundary of a phase.
        settings, training: of the run.
        guard: has the reasons where something is not measured.
        has_laps: whether there is a warm-up lap.

    Attributes:
        phases: hears them, while steps are taken apart; None otherwise.
        flops_per_batch: of one batch on this rank; None: not counted.
        flops_samples: samples of the batch that was counted; None: not known, or given by the user.
        is_compiled: says whether the training is compiled: then it isn't counted, for counting would run it
            differently.
        on_begin, on_end: called when phases are listened to, and no more.
        ddp: whose clocks say what a step waits for other ranks; None: there is none.
    """

    def __init__(self, device: Device, settings: Settings, training: Training, guard: Guard, has_laps: bool) -> None:
        self.device = device
        self.guard = guard
        self.phases: PhaseClock | None = None
        self.flops_per_batch: int | None = None
        self.flops_samples: int | None = None
        self.is_compiled: Callable[[], bool] = compiled_anything
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
        self._wants_breakdown = settings.breakdown and has_laps
        self._wants_flops = settings.flops is True and has_laps
        if settings.flops is not True and settings.flops is not False:
            self.flops_per_batch = int(settings.flops)
        elif not self._wants_flops:
            reason = "there is no warm-up lap to count it in" if settings.flops else "flops=False"
            guard.mark_missing("model.flops_per_batch", reason, warn=False)
        if not self._wants_breakdown:
            reason = "there is no warm-up lap to take it from" if settings.breakdown else "breakdown=False"
            guard.mark_missing("breakdown", reason, warn=False)

    def flop_counter(self) -> FlopCounter | None:
        """What the batch of the warm-up lap that begins is to be trained in, so that its FLOPs are counted; None: they
        aren't counted in this one."""
        if not self._wants_flops or self._num_batches != _NUM_SKIPPED_BATCHES - 1:
            return None
        self._wants_flops = False
        if self.is_compiled():
            self.leave_out_flops("the model is compiled")
            return None
        return FlopCounter()

    def note_flops(self, counter: FlopCounter, samples: int | None) -> None:
        """A batch has been trained on within a counter.

        Args:
            samples: that it holds; None: not known.
        """
        if counter.unknown:
            self.leave_out_flops(f"no formula for {', '.join(sorted(counter.unknown))}")
        elif not counter.total:
            self.leave_out_flops("no product was computed in this thread")
        else:
            self.flops_per_batch, self.flops_samples = counter.total, samples

    def leave_out_flops(self, reason: str) -> None:
        """Don't count FLOPs."""
        self._wants_flops = False
        self.guard.mark_missing("model.flops_per_batch", f"{reason}. Pass flops=", warn=False)

    def batch_begins(self) -> None:
        """A batch of the warm-up lap is about to be trained on."""
        self._counter = self.flop_counter()
        if self._counter is not None:
            self._counter.__enter__()

    def batch_ends(self, samples: int | None = None) -> None:
        """It has been trained on.

        Args:
            samples: that it holds; None: not known.
        """
        self._num_batches += 1
        self._end_count(samples)

    def pause(self) -> None:
        """What follows is no training."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self.phases is not None:
            self.phases.pause()

    def resume(self) -> None:
        """Training goes on."""
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
        """The next batch of the warm-up lap is asked for: what belongs to the one before is over."""
        if not self._wants_breakdown or self._num_batches < _NUM_SKIPPED_BATCHES:
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
            self._waited_s.append(exposed_s(comm_times(self.ddp)))
        num = len(self.phases.steps)
        if num >= _MAX_STEPS or (num >= _MIN_STEPS and time.perf_counter() > self._until):
            self.end()

    def close(self) -> None:
        """Listen to nobody any more, and keep nothing of the training."""
        self.end()
        if self._wants_flops:
            self.leave_out_flops(f"the warm-up lap has fewer than {_NUM_SKIPPED_BATCHES} steps")
        self.is_compiled, self.on_begin, self.on_end, self.ddp = compiled_anything, _ignore, _ignore, None

    def end(self) -> None:
        """The lap is over, or enough was seen."""
        self._end_count()  # where an exception has ended the step
        self._wants_breakdown = False
        if self.phases is None:
            return
        self._steps, self.phases = self.phases.steps, None
        self.on_end()
        if self.ddp is not None:
            self.ddp._set_ddp_runtime_logging_sample_rate(_DDP_SAMPLE_RATE)

    def note(self, record: RunRecord) -> None:
        """Fill in the breakdown, and what is known of communication."""
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
    """Whether torch has compiled something in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"]["total"])


def is_compiled(module: Any) -> bool:
    """Whether a module, or a part of it, is compiled."""
    return any(
        type(each).__name__ == "OptimizedModule" or getattr(each, "_compiled_call_impl", None) is not None
        for each in module.modules()
    )
