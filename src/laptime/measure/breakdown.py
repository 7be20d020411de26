"""Measures where the time of a step goes, in separate steps after training and test, which never count.

First every rank trains on as in the epochs, with instrumented steps. Then short blocks of three kinds alternate, so
that interference affects all equally. The first kind are synchronized steps as in training. The second kind are steps
without synchronization, each rank at its own pace (`no_sync`), which show the cost of shared cores, caches and memory.
The third kind are isolated all-reduces that send as much as a step.
"""

import logging
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytorch_lightning as pl
from torch.optim import Optimizer

from laptime.data.workers import WorkersPipeline
from laptime.lap.epoch_sums import Sums
from laptime.lap.phases import StepClock, ignore_phase, percentiles, typical
from laptime.lap.timed_loader import Batch, Pipeline
from laptime.machine.device import Device
from laptime.ranks.comm_hooks import AllReduce, comm_times, isolated_all_reduce, record_all_reduces, waiting_s
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.record import schema
from laptime.training.capabilities import TakesSteps, configured_optimizer, missing_attributes

log = logging.getLogger(__name__)

# Instrumented steps: as many as fit into this time, at least 100 for the percentiles, but fewer if steps are slow.
_INSTRUMENTED_S = 0.2
_MIN_INSTRUMENTED, _ENOUGH_INSTRUMENTED = 5, 100
_WARM_UP_STEPS = 3
_ENOUGH_STEP_GROUPS = 4
_BLOCK_STEPS, _SLOW_BLOCK_STEPS = 6, 2
_SLOW_STEP_S = 0.05
_SETTLING_STEPS = 2  # at the start of a block, not measured: the caches still hold data of the previous block
_MAX_ROUNDS = 20


class _Effort(NamedTuple):
    """The limits of a measurement.

    Attributes:
        max_instrumented_s: maximum seconds of instrumented steps.
        min_rounds: minimum number of rounds.
        rounds_s: time in seconds after which no further round starts.
    """

    max_instrumented_s: float
    min_rounds: int
    rounds_s: float


_SINGLE_RUN_EFFORT, _SWEEP_EFFORT = _Effort(3.0, 3, 0.3), _Effort(0.15, 2, 0.1)


@dataclass
class _Seconds:
    """Measurements of one rank in seconds, one value per step. `comm` and `overlap` come from DDP's own clocks."""

    step: list[float] = field(default_factory=list)
    comm: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    no_sync_step: list[float] = field(default_factory=list)
    isolated_all_reduce: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in vars(self).items() if values}

    def by_round(self, block_steps: int) -> list["_Seconds"]:
        """Split the measurements into those of each round."""
        num_rounds = len(self.no_sync_step) // block_steps

        def of_round(values: list[float], number: int) -> list[float]:
            size = len(values) // num_rounds
            return values[number * size : (number + 1) * size]

        return [_Seconds(*(of_round(values, number) for values in vars(self).values())) for number in range(num_rounds)]


def _endless_step_groups(pipeline: Pipeline) -> Generator[tuple[list[Batch], bool], None, None]:
    """Yield step groups, epoch after epoch, and for each whether it is the first of its epoch."""
    while True:
        for number, step_group in enumerate(pipeline.step_groups()):
            yield step_group, number == 0


class Breakdown:
    """Takes the separate steps with a new optimizer. They change the trained weights.

    Args:
        device: is synchronized before and after every step.
        rank: this process.
        stop: is checked between two steps.
        in_sweep: whether to measure for a shorter time, because a sweep has repeats.

    Attributes:
        breakdown, communication, contention: the sections of the record.
    """

    def __init__(self, device: Device, rank: Rank, stop: StopRequest, in_sweep: bool) -> None:
        self.device = device
        self.rank = rank
        self.stop = stop
        self._effort = _SWEEP_EFFORT if in_sweep else _SINGLE_RUN_EFFORT
        self.breakdown = schema.Breakdown()
        self.communication = schema.Communication()
        self.contention = schema.Contention()
        self._block_steps = _BLOCK_STEPS

    def measure(self, module: pl.LightningModule, pipeline: Pipeline) -> None:
        """Measure all sections. Warns and measures nothing if the module can't take steps outside Lightning's loop.

        Args:
            module: the trained module.
            pipeline: makes the training batches.
        """
        if not isinstance(module, TakesSteps):
            if self.rank.is_first:
                log.warning("measure.breakdown: not measured: %s", missing_attributes(module, TakesSteps))
            return
        module.to(self.device.torch_device)  # Lightning leaves a module on the CPU
        module.stepper.network.train()
        module.train_sums = Sums()
        optimizer, _ = configured_optimizer(module)
        if module.stepper.ddp is not None:
            # Time every step instead of a sample of them. torch 2.14 has no public function for it (not reported).
            module.stepper.ddp._set_ddp_runtime_logging_sample_rate(1)
        steps, epoch_start_s, batches = self._instrumented_steps(module, optimizer, pipeline)
        self._set_breakdown(typical(steps), [sum(step.values()) for step in steps], epoch_start_s)
        step_s = self.breakdown.step_s
        assert step_s is not None
        self._block_steps = _SLOW_BLOCK_STEPS if step_s > _SLOW_STEP_S else _BLOCK_STEPS
        if module.stepper.ddp is None:
            # Without other ranks, the instrumented steps are steps without synchronization.
            phases = ("forward", "backward", "optimizer")
            no_sync_step_s = sum(self.breakdown.of_phase(phase) or 0.0 for phase in phases)
            self.contention = schema.Contention(no_sync_step_s=no_sync_step_s)
        else:
            self._set_communication(*self._measure(module, optimizer, batches))

    def _instrumented_steps(
        self, module: TakesSteps, optimizer: Optimizer, pipeline: Pipeline
    ) -> tuple[list[dict[str, float]], float, list[Batch]]:
        """Train on as in the epochs, with a clock.

        Returns:
            The seconds of every step by phase, the additional seconds for drawing the first step group of an epoch, and
            the batches of the last step group.
        """
        ddp = module.stepper.ddp
        exposed_s = None if ddp is None else lambda: waiting_s(comm_times(ddp))
        clock = StepClock(self.device, exposed_s, waits_in="backward" if module.stepper.shared is None else "optimizer")
        step_groups = _endless_step_groups(pipeline)
        # The first step group of an epoch takes longer: the permutation is drawn, and workers have no batch ready. It
        # is left out if there are enough other step groups.
        leaves_first_out = len(pipeline) >= _ENOUGH_STEP_GROUPS
        for _ in pipeline.step_groups():  # start the data workers, which are running in the epochs, too
            break
        self.rank.barrier()
        module.stepper.on_phase = clock.on_phase
        if isinstance(pipeline, WorkersPipeline):
            pipeline.on_phase = clock.on_phase
        try:
            clock.start()
            step_group, _ = next(step_groups)
            clock.on_phase("data")
            first_draw_s = clock.shared["data"]
            module.take_steps(optimizer, step_group[:_WARM_UP_STEPS])  # the new optimizer has no state yet
            num_steps = self._num_steps(min(sum(step.values()) for step in clock.steps))
            clock.end_step_group(counts=False)
            clock.start()
            while len(clock.steps) < num_steps:
                step_group, is_first = next(step_groups)
                clock.on_phase("data")
                module.take_steps(optimizer, step_group[: num_steps - len(clock.steps)])
                clock.end_step_group(counts=not is_first or not leaves_first_out, num_drawn=len(step_group))
        finally:
            module.stepper.on_phase = ignore_phase
            if isinstance(pipeline, WorkersPipeline):
                pipeline.on_phase = ignore_phase
            step_groups.close()
        steps = clock.step_seconds()
        usual_draw_s = statistics.median(step["data"] for step in steps) * len(step_group)
        return steps, max(0.0, first_draw_s - usual_draw_s) if leaves_first_out else 0.0, step_group

    def _num_steps(self, step_s: float) -> int:
        """Return the number of instrumented steps, which is the same on every rank."""
        step_s = max(self.rank.gather(step_s))
        enough = max(_ENOUGH_INSTRUMENTED, round(_INSTRUMENTED_S / step_s))
        return max(_MIN_INSTRUMENTED, min(enough, round(self._effort.max_instrumented_s / step_s)))

    def _measure(
        self, module: TakesSteps, optimizer: Optimizer, batches: list[Batch]
    ) -> tuple[_Seconds, list[AllReduce]]:
        seconds, ddp = _Seconds(), module.stepper.ddp
        assert ddp is not None
        num_taken = 0

        def step() -> float:
            nonlocal num_taken
            if self.stop.requested:
                self.stop.act()
            batch = batches[num_taken % len(batches)]
            num_taken += 1
            return self._timed(lambda: module.stepper.take(optimizer, *batch))

        for _ in range(_WARM_UP_STEPS):
            step()
        with record_all_reduces(ddp) as sent:
            step()
        all_reduce = isolated_all_reduce(ddp, sent, self.device.torch_device)

        def synchronized_step() -> float:
            step_s = step()
            # DDP updates these when the next step starts, so they belong to the previous step.
            times = comm_times(ddp)
            seconds.comm.append(times["comm"])
            seconds.overlap.append(times["overlap"])
            return step_s

        for _ in self._rounds():
            seconds.step += self._block(synchronized_step)
            with ddp.no_sync():
                seconds.no_sync_step += self._block(step)
            seconds.isolated_all_reduce += self._block(lambda: self._timed(all_reduce))
        return seconds, sent

    def _block(self, work: Callable[[], float]) -> list[float]:
        """Do a block of steps of one kind, which all ranks start together, and return the seconds of each step."""
        self.rank.barrier()
        return [work() for _ in range(_SETTLING_STEPS + self._block_steps)][_SETTLING_STEPS:]

    def _timed(self, work: Callable[[], object]) -> float:
        """Do the work, and return its seconds. The device is synchronized before and after it."""
        self.device.synchronize()
        before = time.perf_counter()
        work()
        self.device.synchronize()
        return time.perf_counter() - before

    def _rounds(self) -> Iterator[None]:
        """Yield once per round while there is time. The number of rounds is the same on every rank."""
        started_at = time.perf_counter()
        for number in range(_MAX_ROUNDS):
            is_enough = number >= self._effort.min_rounds
            if is_enough and self.rank.any_rank(time.perf_counter() - started_at > self._effort.rounds_s):
                return
            yield

    def _set_breakdown(self, phases: dict[str, float], totals: list[float], epoch_start_s: float) -> None:
        by_rank = self.rank.gather((phases, totals, epoch_start_s))
        mean = {phase: statistics.fmean(seconds[phase] for seconds, _, _ in by_rank) for phase in phases}
        slowest = [max(step_of_ranks) for step_of_ranks in zip(*(steps for _, steps, _ in by_rank), strict=True)]
        self.breakdown = schema.Breakdown(
            **{f"{phase}_s": mean.get(phase) for phase in schema.PHASES},
            step_s=sum(mean.values()),
            **percentiles(slowest),
            num_steps=len(totals),
            epoch_start_s=max(start_s for _, _, start_s in by_rank),
        )

    def _set_communication(self, seconds: _Seconds, sent: list[AllReduce]) -> None:
        by_rank = self.rank.gather(seconds.medians())
        middle = {name: statistics.median(medians[name] for medians in by_rank) for name in by_rank[0]}
        slowest_s = max(medians["no_sync_step"] for medians in by_rank)
        straggler_delay = slowest_s / middle["no_sync_step"] - 1 if len(by_rank) > 1 else None
        self.contention = schema.Contention(no_sync_step_s=middle["no_sync_step"], straggler_delay=straggler_delay)
        exposed_s = waiting_s(middle)
        share = exposed_s / middle["step"]
        rounds = [of_round.medians() for of_round in seconds.by_round(self._block_steps)]
        shares_by_rank = self.rank.gather([waiting_s(medians) / medians["step"] for medians in rounds])
        shares = [share, *(statistics.median(of_round) for of_round in zip(*shares_by_rank, strict=True))]
        self.communication = schema.Communication(
            num_all_reduces_per_step=len(sent),
            bytes_per_step=sum(size * dtype.itemsize for size, dtype in sent),
            step_s=middle["step"],
            compute_s=middle["step"] - exposed_s,
            comm_s=middle["comm"],
            overlap_s=middle["overlap"],
            exposed_s=exposed_s,
            share=share,
            share_min=min(shares),
            share_max=max(shares),
            # More than the waiting: it includes copying gradients into DDP's buckets and back, which evicts caches.
            cost_s=middle["step"] - middle["no_sync_step"],
            isolated_all_reduce_s=middle["isolated_all_reduce"],
            num_steps=len(seconds.step),
        )
        if not self.rank.is_first:
            return
        log.info(
            "breakdown, in separate steps: %.2f ms per step, %.2f ms without synchronization",
            1e3 * middle["step"],
            1e3 * middle["no_sync_step"],
        )
