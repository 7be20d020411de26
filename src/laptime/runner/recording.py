"""Fills in a run's record, section by section."""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from laptime.config.identity import hashed_config
from laptime.config.schema import Config
from laptime.data.datamodule import DataModule
from laptime.errors import first_line
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.flops import count_flops
from laptime.lap.quality import assess
from laptime.lap.recorder import LapRecorder
from laptime.lap.timed_loader import Pipeline
from laptime.machine.counters import delta, on_battery, snapshot
from laptime.machine.device import Device, mps_fallback, usable_cores
from laptime.machine.energy import EnergyMeter
from laptime.machine.environment import ineffective_variables, python_settings, slowing_settings
from laptime.machine.memory import peak_rss_bytes, reset_peak_rss
from laptime.machine.torch_build import driver_version, torch_build
from laptime.measure.breakdown import Breakdown
from laptime.measure.limit import bytes_moved, limit, training_advice
from laptime.measure.peak import probe
from laptime.measure.sampler import Sampler
from laptime.ranks.rank import Rank, assert_world
from laptime.record import schema
from laptime.record.epochs import time_to_score
from laptime.record.hashes import config_hashes
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled
from laptime.record.score import ACCURACY, Score
from laptime.runner.context import RunContext
from laptime.training.build import network_name, prepare_device
from laptime.training.compile_ahead import CompileAhead

log = logging.getLogger(__name__)

_CONTENTS = (
    "from asking for the first batch to the device-synchronized end of the last optimizer step; without validation, "
    "checkpoints and logging"
)


def measure_breakdown_and_peak(
    run: RunContext,
    device: Device,
    rank: Rank,
    module: pl.LightningModule,
    optimizer: torch.optim.Optimizer,
    data: DataModule,
) -> None:
    """Measure where a step's time goes, and how close the run came to the device's peak.

    If a measurement fails (e.g. out of memory), a run of one process continues without it. One of several ranks can't
    continue alone, so there the error is raised.
    """
    pipeline = data.train_dataloader().pipeline
    measures: dict[str, Callable[[], None]] = {}
    if run.config.measure.breakdown:
        breakdown = Breakdown(device, rank, run.stop, in_sweep=run.sweep is not None)
        measures["breakdown"] = partial(_note_breakdown, run.record, breakdown, module, pipeline)
    if run.config.measure.peak:
        measures["peak"] = partial(_note_limit, run.record, device, rank, optimizer)
    for name, measure in measures.items():
        try:
            measure()
        except (RuntimeError, MemoryError) as error:
            if rank.is_distributed:
                raise
            log.warning("measure.%s: not measured (%s)", name, first_line(error))
    data.teardown("fit")


def _note_breakdown(record: RunRecord, breakdown: Breakdown, module: pl.LightningModule, pipeline: Pipeline) -> None:
    breakdown.measure(module, pipeline)
    record.breakdown = breakdown.breakdown
    record.breakdown.instrument_s = _instrument_s(breakdown.breakdown, record.timing)
    record.communication = breakdown.communication
    record.contention = breakdown.contention


def begin(run: RunContext, rank: Rank) -> Device:
    """Prepare the training device, and record the setup of the run.

    Returns:
        The device.

    Raises:
        UserError: the device is absent, or can't train in this precision.
    """
    record = run.record
    reset_peak_rss()
    device = prepare_device(run.config, rank.local_rank)
    _note_setup(run, device, rank)
    filled(record.strategy).rank_pids = assert_world(rank, rank.world_size)
    if rank.is_first:  # already here: a resumed sweep needs the hashes even of runs that fail later
        record.write(run.run_dir)
    if record.noise.load_before is None:
        record.noise.load_before, record.noise.on_battery = snapshot().load, on_battery()
    return device


def _note_setup(run: RunContext, device: Device, rank: Rank) -> None:
    config, record, settings = run.config, run.record, run.config.training
    record.lap.contents = _CONTENTS
    if settings.steps_per_lap is not None:
        record.lap.unit, record.lap.num_batches = "batches", settings.steps_per_lap
    record.hashed_config = hashed_config(
        config, device.used, rank.world_size, rank.threads, str(run.run_dir), run.runs_at_once
    )
    record.config_hash, record.group_hash = config_hashes(record.hashed_config)
    record.device = schema.Device(
        requested=device.requested,
        used=device.used,
        name=device.name,
        num_devices=device.num_devices,
        memory_bytes=device.memory_bytes,
        precision=settings.precision,
        matmul_precision=settings.matmul_precision,
        compile=settings.compile,
        cudnn_benchmark=settings.cudnn_benchmark,
        mps_fallback=mps_fallback(),
    )
    record.strategy = schema.Strategy(
        name=config.strategy.name,
        backend=dist.get_backend() if rank.is_distributed else None,
        world_size=rank.world_size,
        threads_per_rank=rank.threads,
        oversubscribed=any(rank.gather(rank.oversubscribed)),
        num_nodes=rank.num_nodes,
    )
    if rank.is_first:
        environment = filled(record.environment)
        environment.torch, environment.driver = torch_build(), driver_version(device)
    is_alone = run.runs_at_once == 1  # joblib sets these variables in its processes
    if rank.is_first and rank.attempt == 0 and is_alone:
        for variable in ineffective_variables(rank.threads):
            log.warning("%s has no effect: strategy.threads_per_rank=%d overrides it", variable, rank.threads)
    if mps_fallback():
        log.warning("PYTORCH_ENABLE_MPS_FALLBACK is set: operators that MPS lacks run on the CPU. run.json records it.")


def note_workload(record: RunRecord, config: Config, data: DataModule, network: nn.Module) -> None:
    source = data.data
    record.dataset = schema.Dataset(
        name=source.name,
        synthetic=source.synthetic,
        **source.recorded_sizes,
        num_train=data.num_train,
        num_val=data.num_val,
        num_test=data.num_test,
        limit=source.limit,
        pipeline=source.pipeline,
        checksum=data.checksum,
    )
    record.model = schema.Model(
        name=network_name(network), num_parameters=sum(parameter.numel() for parameter in network.parameters())
    )
    record.batch = schema.Batch(
        scope=config.training.batch_scope,
        per_rank_batch_size=data.batch_size,
        global_batch_size=data.batch_size * data.rank.world_size,
    )


def note_flops(record: RunRecord, data: DataModule, network: nn.Module) -> None:
    """Count the FLOPs of a step. This takes torch up to a second, so it happens after training."""
    model, flops = filled(record.model), count_flops(network, data.data.example(2, "meta")[0])
    model.flops_per_sample, model.flops_per_batch = flops, None if flops is None else flops * data.batch_size


def note_timing(
    record: RunRecord,
    timer: EpochTimer,
    laps: LapRecorder,
    data: DataModule,
    compiler: CompileAhead,
    start: float,
) -> None:
    # Steps are unknown for epochs that another attempt has timed.
    laps.note_timing(record, timer.warmup_epochs, num_steps=data.num_steps_per_epoch)
    attempt, timing = record.attempts[-1], record.timing
    if timer.first_batch_at is not None:
        startup_s = timer.first_batch_at - start
        attempt.startup_s = startup_s if startup_s >= 0 else None  # negative if the system clock was set back
    if timer.train_started_at is not None and timer.train_ended_at is not None:
        attempt.total_train_s = timer.train_ended_at - timer.train_started_at - timer.apart_s
    totals_s = [attempt.total_train_s for attempt in record.attempts if attempt.total_train_s is not None]
    timing.total_train_s = sum(totals_s) if totals_s else None
    timing.startup_s = next((attempt.startup_s for attempt in record.attempts if attempt.startup_s is not None), None)
    if compiler.compile_s is not None:
        timing.compile_s = compiler.compile_s


def make_sampler(config: Config, record: RunRecord, device: Device, rank: Rank) -> Sampler | None:
    """Return the sampler of all ranks of this machine, on its first rank; None on other ranks or without sampling."""
    nodes = rank.gather(rank.node)
    all_pids = filled(record.strategy).rank_pids or []
    pids = [pid for pid, node in zip(all_pids, nodes, strict=True) if node == rank.node]
    measure = config.measure
    if rank.local_rank != 0 or measure.sample_interval_s is None:
        return None
    return Sampler(pids, device, measure.sample_interval_s, measure.memory_warning)


def note_resources(record: RunRecord, laps: LapRecorder, sampler: Sampler | None, energy: EnergyMeter | None) -> None:
    """Record memory, CPU and energy as far as the first rank knows them during training."""
    laps.note_resources(record, energy)
    if sampler is not None:
        record.resources.sampler_num_samples = sampler.num_samples
        record.resources.sampler_cpu_fraction = sampler.cost_fraction


def note_memory(record: RunRecord, rank: Rank, device: Device, sampler: Sampler | None) -> None:
    """Record the run's use of host and device memory over all machines, after training."""

    def total(rank_bytes: int | None) -> int | None:
        sizes = [size for size in rank.gather(rank_bytes) if size is not None]
        return sum(sizes) if sizes else None

    # The kernel's peak of each rank misses data workers; samples cover all processes but miss short peaks.
    peaks = (total(peak_rss_bytes()), total(sampler.peak_rss_bytes if sampler is not None else None))
    resources = record.resources
    # MPS reports no peak, but has at most one rank, so its samples are complete.
    sampled_peak = sampler.peak_device_memory_bytes if sampler is not None else None
    device_peaks = (resources.peak_device_memory_bytes, sampled_peak)
    host_peaks = (*peaks, resources.peak_rss_bytes)
    resources.peak_rss_bytes = max((peak for peak in host_peaks if peak is not None), default=None)
    resources.peak_device_memory_bytes = max((peak for peak in device_peaks if peak is not None), default=None)
    resources.device_memory_bytes = total(device.memory_bytes_now())
    resources.driver_memory_bytes = total(device.driver_memory_bytes())


def note_quality(record: RunRecord, laps: LapRecorder, runs_at_once: int, profiled: bool) -> None:
    """Record the interference in each epoch and the resulting quality grade."""
    noise, strategy = record.noise, filled(record.strategy)
    earlier_epochs = [epoch for epoch in noise.epochs or [] if epoch.attempt != laps.rank.attempt]
    noise.epochs = earlier_epochs + laps.noise
    noise.load_after = snapshot().load
    times = [epoch.epoch_time_s for epoch in laps.counted]
    environment = record.environment
    settings = {**((environment.settings if environment is not None else None) or {}), **python_settings()}
    quality = assess(
        [epoch for epoch in noise.epochs if not epoch.is_warmup],
        times,
        os.cpu_count() or 1,
        noise.on_battery,
        strategy.oversubscribed,
        profiled=profiled,
        crowded=strategy.world_size > 1 or filled(record.dataset).pipeline == "workers",
        runs_at_once=runs_at_once,
        timed=f"{record.lap_word}s",
        slowing_settings=slowing_settings(settings),
        threads=(strategy.threads_per_rank, torch.get_num_threads()),
        more_warmup=f"measure.warmup_epochs={sum(epoch.is_warmup for epoch in laps.noise) + 1}",
    )
    if laps.rank.is_first:
        environment = filled(environment)
        environment.torch = {**(environment.torch or {}), "num_threads": torch.get_num_threads()}
        environment.settings = settings
    if times:
        record.quality = schema.Quality(grade=quality.grade, reasons=list(quality.reasons))


def note_result(record: RunRecord, laps: LapRecorder, score: Score, target: float | None) -> None:
    """Record the scores of the last epoch, and the time to the target; None: there is no target."""
    laps.note_result(record)
    result, epochs = record.result, laps.epochs
    result.score = score
    if target is not None and epochs:
        elapsed_s = accumulate(epoch.epoch_time_s for epoch in epochs)
        values = zip(elapsed_s, (epoch.val_score for epoch in epochs), strict=True)
        result.time_to_score = time_to_score(values, score, target, epochs[0].epoch)
        if score == ACCURACY:
            result.time_to_accuracy = result.time_to_score


def _instrument_s(breakdown: schema.Breakdown, timing: schema.Timing) -> float | None:
    """Return how many seconds longer an instrumented step takes than a step of an epoch.

    The extra time at an epoch's start is left out.
    """
    if not timing.steps_per_s or timing.epoch_time_s is None or breakdown.step_s is None:
        return None
    num_steps = timing.steps_per_s * timing.epoch_time_s
    return breakdown.step_s + (breakdown.epoch_start_s or 0.0) / num_steps - 1 / timing.steps_per_s


def _note_limit(record: RunRecord, device: Device, rank: Rank, optimizer: torch.optim.Optimizer) -> None:
    """Measure the device's peak, and how close the run came to it."""
    num_local_ranks = rank.gather(rank.node).count(rank.node)
    cores_per_thread = 1.0 if device.used != "cpu" else usable_cores() / (num_local_ranks * rank.threads)
    precision = filled(record.device).precision
    before, started_s = snapshot(), time.process_time()
    peak = probe(device, precision, rank, cores_per_thread)
    cpu_times = rank.gather((time.process_time() - started_s, rank.node))
    cpu_s = sum(seconds for seconds, node in cpu_times if node == rank.node)
    cores = os.cpu_count() or 1
    record.peak = limit(
        filled(record.model).flops_per_sample,
        record.timing.samples_per_s,
        filled(record.batch).global_batch_size,
        peak,
        breakdown=record.breakdown,
        optimizer_bytes=sum(rank.gather(bytes_moved(optimizer))),
        advice=training_advice(filled(record.dataset).pipeline or "", precision),
        disturbances=assess([delta(before, snapshot(), cpu_s, cores)], [], cores).reasons,
    )
