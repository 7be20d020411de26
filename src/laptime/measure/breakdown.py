"""Where a step's time goes, from separate steps when training and test are over: they never count.

First every rank trains on as in the epochs, and a clock takes each step apart. Then come short blocks of steps of three
kinds in turn, so that whatever disturbs the machine meets all alike: synchronised steps as in training; steps without
synchronisation, each rank at its own pace (`no_sync`), which tell what ranks lose to shared cores, caches and memory;
and all-reduces of the same size with nothing around them.
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
from laptime.ranks.comm_hooks import AllReduce, comm_times, isolated_all_reduce, record_all_reduces
from laptime.ranks.comm_hooks import exposed_s as waiting_s
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.record import schema
from laptime.training.capabilities import TakesSteps, configured_optimizer, missing_attributes

log = logging.getLogger(__name__)

# Steps taken apart: as many as fit into that long, a hundred at least for the percentiles, fewer where steps are slow.
_TAKEN_APART_S = 0.2
_FEWEST_TAKEN_APART, _ENOUGH_TAKEN_APART = 5, 100
_WARM_UP_STEPS = 3
_ENOUGH_LISTS = 4
_BLOCK_STEPS, _SLOW_BLOCK_STEPS = 6, 2
_SLOW_STEP_S = 0.05
_SETTLING_STEPS = 2  # at the start of a block, not measured: caches still hold what the block before left there
_MOST_ROUNDS = 20


class _Effort(NamedTuple):
    """How long to measure.

    Attributes:
        taken_apart_s: most seconds of steps taken apart.
        num_rounds: fewest rounds.
        rounds_s: no further round after that long.
    """

    taken_apart_s: float
    num_rounds: int
    rounds_s: float


_ALONE, _IN_A_SWEEP = _Effort(3.0, 3, 0.3), _Effort(0.15, 2, 0.1)


@dataclass
class _Seconds:
    """What one rank measured, a value per step; DDP's own clocks give comm and overlap."""

    step: list[float] = field(default_factory=list)
    comm: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    no_sync_step: list[float] = field(default_factory=list)
    isolated_all_reduce: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in vars(self).items() if values}

    def by_round(self, block_steps: int) -> list["_Seconds"]:
        """The same for every round by itself."""
        num_rounds = len(self.no_sync_step) // block_steps

        def part(values: list[float], number: int) -> list[float]:
            size = len(values) // num_rounds
            return values[number * size : (number + 1) * size]

        return [_Seconds(*(part(each, number) for each in vars(self).values())) for number in range(num_rounds)]


def _for_ever(pipeline: Pipeline) -> Generator[tuple[list[Batch], bool], None, None]:
    """Lists of batches, epoch after epoch, and whether each is its epoch's first."""
    while True:
        for number, step_group in enumerate(pipeline.step_groups()):
            yield step_group, number == 0


class Breakdown:
    """Takes the separate steps, with an optimizer of its own, on the trained weights, which they change.

    Args:
        device: is synchronised before and after every step.
        rank: this process.
        stop: is heeded between two steps.
        in_sweep: whether the run is one of many: then it is to be quick, and repeats make up for it.

    Attributes:
        breakdown, communication, contention: the sections of the record.
    """

    def __init__(self, device: Device, rank: Rank, stop: StopRequest, in_sweep: bool) -> None:
        self.device = device
        self.rank = rank
        self.stop = stop
        self._effort = _IN_A_SWEEP if in_sweep else _ALONE
        self.breakdown = schema.Breakdown()
        self.communication = schema.Communication()
        self.contention = schema.Contention()
        self._block_steps = _BLOCK_STEPS

    def measure(self, module: pl.LightningModule, pipeline: Pipeline) -> None:
        """Measure all of it; nothing, with a warning, where the module can't take steps outside Lightning's loop.

        Args:
            module: as trained.
            pipeline: of the training batches.
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
            module.stepper.ddp._set_ddp_runtime_logging_sample_rate(1)
        steps, epoch_start_s, batches = self._take_apart(module, optimizer, pipeline)
        self._note_parts(typical(steps), [sum(step.values()) for step in steps], epoch_start_s)
        step_s = self.breakdown.step_s
        assert step_s is not None
        self._block_steps = _SLOW_BLOCK_STEPS if step_s > _SLOW_STEP_S else _BLOCK_STEPS
        if module.stepper.ddp is None:
            # Nobody to wait for: the steps that were taken apart are those without synchronisation.
            parts = ("forward", "backward", "optimizer")
            no_sync_step_s = sum(self.breakdown.of_phase(part) or 0.0 for part in parts)
            self.contention = schema.Contention(no_sync_step_s=no_sync_step_s)
        else:
            self._note(*self._measure(module, optimizer, batches))

    def _take_apart(
        self, module: TakesSteps, optimizer: Optimizer, pipeline: Pipeline
    ) -> tuple[list[dict[str, float]], float, list[Batch]]:
        """Train on as in the epochs, with a clock.

        Returns:
            The seconds of every step by part, those by which drawing an epoch's first list takes longer than any other,
            and the batches of the last list.
        """
        ddp = module.stepper.ddp
        exposed_s = None if ddp is None else lambda: waiting_s(comm_times(ddp))
        clock = StepClock(self.device, exposed_s, waits_in="backward" if module.stepper.shared is None else "optimizer")
        step_groups = _for_ever(pipeline)
        # A permutation is drawn with an epoch's first list, and workers have nothing ready: told apart from the others,
        # where there are enough of them.
        leaves_first_out = len(pipeline) >= _ENOUGH_LISTS
        for _ in pipeline.step_groups():  # starts the workers, where there are any: in the epochs they are there
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
        others_s = statistics.median(step["data"] for step in steps) * len(step_group)
        return steps, max(0.0, first_draw_s - others_s) if leaves_first_out else 0.0, step_group

    def _num_steps(self, step_s: float) -> int:
        """How many steps to take apart, the same on every rank."""
        step_s = max(self.rank.gather(step_s))
        enough = max(_ENOUGH_TAKEN_APART, round(_TAKEN_APART_S / step_s))
        return max(_FEWEST_TAKEN_APART, min(enough, round(self._effort.taken_apart_s / step_s)))

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
            images, labels = batches[num_taken % len(batches)]
            num_taken += 1
            return self._timed(lambda: module.stepper.take(optimizer, images, labels))

        for _ in range(_WARM_UP_STEPS):
            step()
        with record_all_reduces(ddp) as sent:
            step()
        all_reduce = isolated_all_reduce(ddp, sent, self.device.torch_device)

        def synchronised_step() -> float:
            took = step()
            # Those of the step before: DDP reads its clocks when the next one starts.
            times = comm_times(ddp)
            seconds.comm.append(times["comm"])
            seconds.overlap.append(times["overlap"])
            return took

        for _ in self._rounds():
            seconds.step += self._block(synchronised_step)
            with ddp.no_sync():
                seconds.no_sync_step += self._block(step)
            seconds.isolated_all_reduce += self._block(lambda: self._timed(all_reduce))
        return seconds, sent

    def _block(self, work: Callable[[], float]) -> list[float]:
        """The seconds of some steps of one kind, which all ranks start together."""
        self.rank.barrier()
        return [work() for _ in range(_SETTLING_STEPS + self._block_steps)][_SETTLING_STEPS:]

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds on a device that was idle before."""
        self.device.synchronize()
        before = time.perf_counter()
        work()
        self.device.synchronize()
        return time.perf_counter() - before

    def _rounds(self) -> Iterator[None]:
        """As many rounds as there is time for, the same number on every rank."""
        started_at = time.perf_counter()
        for number in range(_MOST_ROUNDS):
            is_enough = number >= self._effort.num_rounds
            if is_enough and self.rank.any_rank(time.perf_counter() - started_at > self._effort.rounds_s):
                return
            yield

    def _note_parts(self, parts: dict[str, float], totals: list[float], epoch_start_s: float) -> None:
        by_rank = self.rank.gather((parts, totals, epoch_start_s))
        mean = {part: statistics.fmean(each[part] for each, _, _ in by_rank) for part in parts}
        slowest = [max(of_ranks) for of_ranks in zip(*(each for _, each, _ in by_rank), strict=True)]
        self.breakdown = schema.Breakdown(
            **{f"{part}_s": mean.get(part) for part in schema.PHASES},
            step_s=sum(mean.values()),
            **percentiles(slowest),
            num_steps=len(totals),
            epoch_start_s=max(each for _, _, each in by_rank),
        )

    def _note(self, seconds: _Seconds, sent: list[AllReduce]) -> None:
        ranks = self.rank.gather(seconds.medians())
        middle = {name: statistics.median(each[name] for each in ranks) for name in ranks[0]}
        own_pace = [each["no_sync_step"] for each in ranks]
        straggler_delay = max(own_pace) / middle["no_sync_step"] - 1 if len(ranks) > 1 else None
        self.contention = schema.Contention(no_sync_step_s=middle["no_sync_step"], straggler_delay=straggler_delay)
        exposed_s = waiting_s(middle)
        share = exposed_s / middle["step"]
        rounds = [each.medians() for each in seconds.by_round(self._block_steps)]
        of_ranks = self.rank.gather([waiting_s(each) / each["step"] for each in rounds])
        shares = [share, *(statistics.median(values) for values in zip(*of_ranks, strict=True))]
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
            # More than the waiting: gradients are copied into DDP's buckets and back, and caches lose what they held.
            cost_s=middle["step"] - middle["no_sync_step"],
            isolated_all_reduce_s=middle["isolated_all_reduce"],
            num_steps=len(seconds.step),
        )
        if not self.rank.is_first:
            return
        log.info(
            "breakdown, in steps of their own: %.2f ms a step, %.2f ms without synchronisation",
            1e3 * middle["step"],
            1e3 * middle["no_sync_step"],
        )
