"""Where a step's time goes, from separate steps after the timed epochs: they never count and leave no trace.

Every rank takes short blocks of steps of three kinds in turn, so that whatever disturbs the machine meets all alike:
synchronised steps as in training; steps without synchronisation, each rank at its own pace (`no_sync`), which tell
what ranks lose to shared cores, caches and memory; and all-reduces of the same size with nothing around them.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from laptime.classifier import Classifier
from laptime.comm_hooks import AllReduce, watching_all_reduces
from laptime.data.timed_loader import Batch, TimedLoader
from laptime.device import Device
from laptime.ranks import Rank
from laptime.stopping import StopRequest

log = logging.getLogger(__name__)

_WARM_UP_STEPS = 3
_BLOCK_STEPS = 6
_SETTLING_STEPS = 2  # at the start of a block, not measured: caches still hold what the block before left there
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 20
_ENOUGH_S = 0.3  # no further round after that long


@dataclass
class _Seconds:
    """What one rank measured, a value per step; DDP's own clocks give comm and overlap."""

    step: list[float] = field(default_factory=list)
    comm: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    no_sync_step: list[float] = field(default_factory=list)
    bare_all_reduce: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in vars(self).items() if values}

    def by_round(self) -> list["_Seconds"]:
        """The same for every round by itself."""
        num_rounds = len(self.no_sync_step) // _BLOCK_STEPS

        def part(values: list[float], number: int) -> list[float]:
            size = len(values) // num_rounds
            return values[number * size : (number + 1) * size]

        return [_Seconds(*(part(each, number) for each in vars(self).values())) for number in range(num_rounds)]


def _exposed_s(medians: Mapping[str, float]) -> float:
    return max(0.0, medians["comm"] - medians["overlap"])


class Breakdown(Callback):
    """Takes the separate steps when the last epoch is over, on the trained weights, and puts those back.

    Args:
        device: is synchronised before and after every step.
        rank: this process.
        stop: is heeded between two steps.

    Attributes:
        communication, contention: the sections of the record, seconds per step; empty: not measured.
    """

    def __init__(self, device: Device, rank: Rank, stop: StopRequest) -> None:
        self.device = device
        self.rank = rank
        self.stop = stop
        self.communication: dict[str, float | int] = {}
        self.contention: dict[str, float | None] = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        loader = trainer.train_dataloader
        assert isinstance(loader, TimedLoader)
        batches = next(iter(loader.pipeline.executions()))
        before = {name: value.clone() for name, value in pl_module.network.state_dict().items()}
        pl_module.network.train()
        try:
            seconds, sent = self._measure(pl_module, batches)
        finally:
            pl_module.network.load_state_dict(before)
        self._note(seconds, sent)

    def _measure(self, module: Classifier, batches: list[Batch]) -> tuple[_Seconds, list[AllReduce]]:
        optimizer = module.configure_optimizers()["optimizer"]
        seconds, ddp = _Seconds(), module.ddp
        num_taken = 0

        def step() -> float:
            nonlocal num_taken
            if self.stop.requested:
                self.stop.act()
            images, labels = batches[num_taken % len(batches)]
            num_taken += 1
            return self._timed(lambda: module.take_step(optimizer, images, labels))

        if ddp is None:
            for _ in range(_WARM_UP_STEPS):
                step()
            for _ in self._rounds():
                seconds.no_sync_step += self._block(step)
            return seconds, []

        ddp._set_ddp_runtime_logging_sample_rate(1)
        for _ in range(_WARM_UP_STEPS):
            step()
        with watching_all_reduces(ddp) as sent:
            step()
        buffers = [torch.zeros(size, dtype=dtype, device=self.device.torch_device) for size, dtype in sent]

        def all_reduce() -> None:
            for work in [dist.all_reduce(buffer, async_op=True) for buffer in buffers]:
                assert work is not None
                work.wait()

        def synchronised_step() -> float:
            took = step()
            # Those of the step before: DDP reads its clocks when the next one starts.
            clocks = ddp._get_ddp_logging_data()
            seconds.comm.append(clocks["backward_comm_time"] / 1e9)
            seconds.overlap.append(clocks["backward_compute_comm_overlap_time"] / 1e9)
            return took

        for _ in self._rounds():
            seconds.step += self._block(synchronised_step)
            with ddp.no_sync():
                seconds.no_sync_step += self._block(step)
            seconds.bare_all_reduce += self._block(lambda: self._timed(all_reduce))
        return seconds, sent

    def _block(self, work: Callable[[], float]) -> list[float]:
        """The seconds of some steps of one kind, which all ranks start together."""
        self.rank.barrier()
        return [work() for _ in range(_SETTLING_STEPS + _BLOCK_STEPS)][_SETTLING_STEPS:]

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
            if number >= _FEWEST_ROUNDS and self.rank.any(time.perf_counter() - started_at > _ENOUGH_S):
                return
            yield

    def _note(self, seconds: _Seconds, sent: list[AllReduce]) -> None:
        ranks = self.rank.gather(seconds.medians())
        middle = {name: statistics.median(each[name] for each in ranks) for name in ranks[0]}
        own_pace = [each["no_sync_step"] for each in ranks]
        straggling = max(own_pace) / middle["no_sync_step"] - 1 if len(ranks) > 1 else None
        self.contention = {"no_sync_step_s": middle["no_sync_step"], "straggling": straggling}
        if not sent:
            return
        exposed_s = _exposed_s(middle)
        share = exposed_s / middle["step"]
        rounds = [each.medians() for each in seconds.by_round()]
        of_ranks = self.rank.gather([_exposed_s(each) / each["step"] for each in rounds])
        shares = [share, *(statistics.median(values) for values in zip(*of_ranks, strict=True))]
        self.communication = {
            "num_all_reduces_per_step": len(sent),
            "bytes_per_step": sum(size * dtype.itemsize for size, dtype in sent),
            "step_s": middle["step"],
            "compute_s": middle["step"] - exposed_s,
            "comm_s": middle["comm"],
            "overlap_s": middle["overlap"],
            "exposed_s": exposed_s,
            "share": share,
            "share_min": min(shares),
            "share_max": max(shares),
            # More than the waiting: gradients are copied into DDP's buckets and back, and caches lose what they held.
            "cost_s": middle["step"] - middle["no_sync_step"],
            "bare_all_reduce_s": middle["bare_all_reduce"],
            "num_steps": len(seconds.step),
        }
        if not self.rank.is_first:
            return
        log.info(
            "breakdown, in steps of their own: %.2f ms a step, %.2f ms without synchronisation",
            1e3 * middle["step"],
            1e3 * middle["no_sync_step"],
        )
