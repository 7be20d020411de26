"""Measures the MFU of a training that Laptime only times: its FLOP/s over the fastest matrix product of its ranks."""

import os
import statistics
import time
from typing import TYPE_CHECKING

from laptime.hooks.update_record import flops_of_mean_batch
from laptime.lap.quality import assess
from laptime.machine.counters import delta, snapshot
from laptime.machine.device import usable_cores
from laptime.measure.limit import limit
from laptime.measure.peak import Peak, probe_alone

if TYPE_CHECKING:
    from laptime.hooks.timed_run import TimedRun

# Advice for phases that take long, in terms of PyTorch rather than of Laptime's configuration.
_ADVICE = {
    "compute": "a larger batch, or bf16 mixed precision,",
    "data": "more DataLoader workers, or fewer transforms per sample,",
    "host_to_device": "pin_memory=True and non_blocking copies",
    "communication": "more samples per rank",
    "optimizer": "fewer steps with larger batches",
}


def measure_peak(run: "TimedRun", optimizer_bytes: int) -> None:
    """Measure the peak on all ranks concurrently, and fill in the `peak` section.

    Args:
        optimizer_bytes: bytes that this rank's optimizers read and write in a step.
    """
    device, rank = run.device, run.rank
    ranks_here = -(-rank.world_size // rank.num_nodes)
    cores_per_thread = usable_cores() / (ranks_here * rank.threads) if device.used == "cpu" else 1.0
    run.ranks.barrier("peak")
    before, cpu_s = snapshot(), time.process_time()
    peak = probe_alone(device, run.training.precision, cores_per_thread)
    cpu_s = time.process_time() - cpu_s
    flop_count = run.warmup.flops_per_batch, run.warmup.flops_samples
    values = run.ranks.gather("peak", (peak, optimizer_bytes, flop_count, cpu_s, rank.node))
    record = run.record
    if record is None:
        return
    peaks, optimizer_bytes_by_rank, flop_counts, cpu_s_by_rank, nodes = zip(*values, strict=True)
    cpu_s_here = sum(seconds for seconds, node in zip(cpu_s_by_rank, nodes, strict=True) if node == rank.node)
    cores, per_step = os.cpu_count() or 1, (run.training.batches_per_step or 1) * rank.world_size
    timing, flops_by_rank, samples_by_rank = record.timing, *zip(*flop_counts, strict=True)
    batches_per_s = None if timing.batches_per_s is None else timing.batches_per_s * rank.world_size
    flops = None if None in flops_by_rank else statistics.fmean(flops_by_rank)
    if flops is not None and None not in samples_by_rank and timing.samples_per_s and batches_per_s:
        flops = flops_of_mean_batch(flops / statistics.fmean(samples_by_rank), timing, rank.world_size)
    record.peak = limit(
        None if flops is None else round(flops),
        batches_per_s,
        per_step,
        Peak(sum(p.matmul_flop_per_s for p in peaks), sum(p.copy_bytes_per_s for p in peaks)),
        breakdown=record.breakdown,
        optimizer_bytes=sum(optimizer_bytes_by_rank),
        advice=_ADVICE,
        disturbances=assess([delta(before, snapshot(), cpu_s_here, cores)], [], cores).reasons,
    )
    if record.peak.mfu is None:
        reason = run.guard.missing.get("model.flops_per_batch", "no lap was counted")
        run.guard.mark_missing("peak.mfu", reason, warn=False)
