"""What a run writes into its record, section by section."""

import logging
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from laptime.config.identity import config_hashes, hashed_config
from laptime.data.datamodule import DataModule
from laptime.errors import first_line
from laptime.lap.epoch_recorder import EpochRecorder, over_ranks
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.flops import count_flops
from laptime.lap.timed_loader import Pipeline
from laptime.machine.counters import between, read
from laptime.machine.device import Device, mps_fallback, usable_cores
from laptime.machine.energy import EnergyMeter
from laptime.machine.environment import restraints, set_in_python, without_effect
from laptime.machine.memory import peak_rss_bytes
from laptime.machine.torch_build import driver_version, torch_build
from laptime.measure.breakdown import Breakdown
from laptime.measure.limit import limit
from laptime.measure.peak import probe
from laptime.measure.quality import assess
from laptime.measure.sampler import Sampler
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.record import files as records
from laptime.record.epochs import time_to_accuracy
from laptime.training.build import name_of
from laptime.training.classifier import Classifier
from laptime.training.compile_ahead import CompileAhead

log = logging.getLogger(__name__)


def measure_apart(
    config: Mapping[str, Any],
    record: dict[str, Any],
    device: Device,
    rank: Rank,
    stop: StopRequest,
    module: Classifier,
    optimizer: torch.optim.Optimizer,
    data: DataModule,
) -> None:
    """Where a step's time goes, and how near the device's limit the run came.

    If they fail (out of memory, for example), a run of one plain process continues without them. One of several ranks
    can't continue alone, so the error is raised.
    """
    pipeline = data.train_dataloader().pipeline
    breakdown = Breakdown(device, rank, stop, in_sweep=bool(config["run_label"]))
    measures = {"breakdown": partial(_note_breakdown, record, breakdown, module, pipeline)}
    measures["peak"] = partial(_note_limit, record, device, rank, optimizer)
    for name, measure in measures.items():
        if config["measure"][name]:
            try:
                measure()
            except (RuntimeError, MemoryError) as error:
                if rank.is_distributed:
                    raise
                log.warning("measure.%s: not measured (%s)", name, first_line(error))
    data.teardown("fit")


def _note_breakdown(record: dict[str, Any], breakdown: Breakdown, module: Classifier, pipeline: Pipeline) -> None:
    breakdown.measure(module, pipeline)
    records.update(record, "breakdown", **_with_instrument_cost(breakdown.breakdown, record["timing"]))
    records.update(record, "communication", **breakdown.communication)
    records.update(record, "contention", **breakdown.contention)


def note_set_up(config: Mapping[str, Any], record: dict[str, Any], device: Device, rank: Rank) -> None:
    settings, strategy = config["training"], config["strategy"]
    record["hashed_config"] = hashed_config(config, device.used, rank.world_size, rank.threads)
    record["config_hash"], record["group_hash"] = config_hashes(record["hashed_config"])
    records.update(
        record,
        "device",
        requested=device.requested,
        used=device.used,
        name=device.name,
        num_devices=device.num_devices,
        memory_bytes=device.memory_bytes,
        precision=settings["precision"],
        matmul_precision=settings["matmul_precision"],
        compile=settings["compile"],
        cudnn_benchmark=settings["cudnn_benchmark"],
        mps_fallback=mps_fallback(),
    )
    records.update(
        record,
        "strategy",
        name=strategy["name"],
        backend=dist.get_backend() if rank.is_distributed else None,
        world_size=rank.world_size,
        threads_per_rank=rank.threads,
        oversubscribed=any(rank.gather(rank.oversubscribed)),
        num_nodes=rank.num_nodes,
    )
    if rank.is_first:
        record["environment"] |= {"torch": torch_build(), "driver": driver_version(device)}
    if rank.is_first and rank.attempt == 0 and config["runs_at_once"] == 1:  # joblib sets them in its processes
        for variable in without_effect(rank.threads):
            log.warning("%s has no effect: strategy.threads_per_rank=%d decides", variable, rank.threads)
    if mps_fallback():
        log.warning("PYTORCH_ENABLE_MPS_FALLBACK is set: operators that MPS lacks run on the CPU. Recorded.")


def note_work(record: dict[str, Any], config: Mapping[str, Any], data: DataModule, network: nn.Module) -> None:
    source = data.data
    records.update(
        record,
        "dataset",
        name=source.name,
        synthetic=source.synthetic,
        shape=list(source.image_shape),
        num_classes=source.class_count,
        num_train=data.num_train,
        num_val=data.num_val,
        num_test=data.num_test,
        limit=source.limit,
        pipeline=source.pipeline,
        checksum=data.checksum,
    )
    records.update(
        record,
        "model",
        name=name_of(network),
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops_per_sample=count_flops(network, source.image_shape),
    )
    records.update(
        record,
        "batch",
        scope=config["training"]["batch_scope"],
        per_rank_batch_size=data.batch_size,
        global_batch_size=data.batch_size * data.rank.world_size,
    )


def note_timing(
    record: dict[str, Any],
    timer: EpochTimer,
    recorder: EpochRecorder,
    data: DataModule,
    compiler: CompileAhead,
    start: float,
) -> None:
    epochs = epochs_of(recorder.rows)
    counted = [row for row in epochs if not row["is_warmup"]]
    epoch_time_s = statistics.median(row["epoch_time_s"] for row in counted) if counted else None
    # Of epochs that another attempt has timed the steps are not known.
    num_steps = statistics.median(recorder.num_steps or [len(data.train_batch_sizes())])
    attempt = record["attempts"][-1]
    if timer.first_batch_at is not None:
        startup_s = timer.first_batch_at - start
        attempt["startup_s"] = startup_s if startup_s >= 0 else None  # the clock was set back meanwhile
    if timer.train_started_at is not None and timer.train_ended_at is not None:
        attempt["total_train_s"] = timer.train_ended_at - timer.train_started_at - timer.apart_s
    totals = [each["total_train_s"] for each in record["attempts"] if each["total_train_s"] is not None]
    startups = [each["startup_s"] for each in record["attempts"] if each["startup_s"] is not None]
    records.update(
        record,
        "timing",
        warmup_epochs=len(epochs) - len(counted) if epochs else timer.warmup_epochs,
        total_train_s=sum(totals) if totals else None,
        epoch_time_s=epoch_time_s,
        samples_per_s=statistics.median(row["num_samples"] for row in counted) / epoch_time_s if epoch_time_s else None,
        steps_per_s=num_steps / epoch_time_s if epoch_time_s else None,
        startup_s=startups[0] if startups else None,
        compile_s=compiler.compile_s if compiler.compile_s is not None else record["timing"]["compile_s"],
        straggling=statistics.median(row["straggling"] for row in counted)
        if counted and data.rank.world_size > 1
        else None,
    )


def make_sampler(config: Mapping[str, Any], record: Mapping[str, Any], device: Device, rank: Rank) -> Sampler | None:
    """Of all ranks of this machine, on the first of them; None: another rank's matter, or not wanted."""
    nodes = rank.gather(rank.node)
    pids = [pid for pid, node in zip(record["strategy"]["rank_pids"], nodes, strict=True) if node == rank.node]
    measure = config["measure"]
    if rank.local_rank != 0 or measure["sample_interval_s"] is None:
        return None
    return Sampler(pids, device, measure["sample_interval_s"], measure["memory_warning"])


def note_resources(
    record: dict[str, Any], recorder: EpochRecorder, sampler: Sampler | None, energy: EnergyMeter | None
) -> None:
    """Memory, CPU and energy, as far as the first rank knows them while it trains."""
    epochs = epochs_of(recorder.rows)
    counted = [row for row in epochs if not row["is_warmup"]]
    device_memory = [row["device_memory_bytes"] for row in epochs if row["device_memory_bytes"] is not None]
    joules = statistics.median(recorder.energy_joules) if recorder.energy_joules else None
    records.update(
        record,
        "resources",
        peak_rss_bytes=max((row["rss_bytes"] for row in epochs), default=None),
        peak_device_memory_bytes=max(device_memory, default=None),
        cpu_percent=statistics.median(row["cpu_percent"] for row in counted) if counted else None,
        cpu_percent_by_core=[statistics.median(core) for core in zip(*recorder.percent_by_core, strict=True)] or None,
        energy_joules=joules,
        energy_joules_per_1000_samples=joules * 1000 / counted[-1]["num_samples"] if joules is not None else None,
        energy_missing=energy.missing if energy is not None else None,
    )
    if sampler is not None:
        records.update(
            record,
            "resources",
            sampler_num_samples=sampler.num_samples,
            sampler_cpu_share=sampler.cost_share,
        )


def note_memory(record: dict[str, Any], rank: Rank, device: Device, sampler: Sampler | None) -> None:
    """What the run took of the memory of all machines and devices, now that it is over."""

    def total(own: int | None) -> int | None:
        known = [each for each in rank.gather(own) if each is not None]
        return sum(known) if known else None

    # The system's own peak of each rank misses data workers; samples, taken of all at once, miss what is short.
    peaks = (total(peak_rss_bytes()), total(sampler.peak_rss_bytes if sampler is not None else None))
    resources = record["resources"]
    # MPS keeps no peak, but has one rank at most, whose samples tell.
    sampled = sampler.peak_device_memory_bytes if sampler is not None else None
    on_device = (resources["peak_device_memory_bytes"], sampled)
    records.update(
        record,
        "resources",
        peak_rss_bytes=max((each for each in (*peaks, resources["peak_rss_bytes"]) if each is not None), default=None),
        peak_device_memory_bytes=max((each for each in on_device if each is not None), default=None),
        device_memory_bytes=total(device.memory_bytes_now()),
        driver_memory_bytes=total(device.driver_memory_bytes()),
    )


def epochs_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per epoch from one row per epoch, attempt and rank, in order; an epoch's last attempt stands."""
    by_epoch: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        by_epoch.setdefault(row["epoch"], {}).setdefault(row["attempt"], []).append(row)
    return [over_ranks(attempts[max(attempts)]) for _, attempts in sorted(by_epoch.items())]


def note_quality(record: dict[str, Any], recorder: EpochRecorder, runs_at_once: int, profiled: bool) -> None:
    """What else the machine did in each epoch, and how far the figures can be trusted for that."""
    noise = record["noise"]
    earlier = [each for each in noise["epochs"] or [] if each["attempt"] != recorder.rank.attempt]
    noise["epochs"] = earlier + recorder.noise
    noise["load_after"] = read().load
    counted = [epoch for epoch in noise["epochs"] if not epoch["is_warmup"]]
    times = [row["epoch_time_s"] for row in epochs_of(recorder.rows) if not row["is_warmup"]]
    own_settings = {**((record["environment"] or {}).get("settings") or {}), **set_in_python()}
    found = assess(
        counted,
        times,
        os.cpu_count() or 1,
        noise["on_battery"],
        bool(record["strategy"]["oversubscribed"]),
        profiled=profiled,
        crowded=record["strategy"]["world_size"] > 1 or record["dataset"]["pipeline"] == "workers",
        runs_at_once=runs_at_once,
        restraints=restraints(own_settings),
        threads=(record["strategy"]["threads_per_rank"], torch.get_num_threads()),
    )
    if recorder.rank.is_first:
        record["environment"]["torch"]["num_threads"] = torch.get_num_threads()
        record["environment"]["settings"] = own_settings
    if times:
        records.update(record, "quality", grade=found.grade, reasons=list(found.reasons))


def note_result(record: dict[str, Any], recorder: EpochRecorder, target_accuracy: float | None) -> None:
    if not recorder.rows:
        return
    last = recorder.rows[-1]
    columns = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    records.update(record, "result", **{column: last[column] for column in columns})
    if target_accuracy is not None:
        rows = epochs_of(recorder.rows)
        elapsed_s = accumulate(row["epoch_time_s"] for row in rows)
        epochs = zip(elapsed_s, (row["val_accuracy"] for row in rows), strict=True)
        reached_s = time_to_accuracy(epochs, target_accuracy, rows[0]["epoch"])
        records.update(record, "result", time_to_accuracy=reached_s)


def _with_instrument_cost(breakdown: dict[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """What a step takes longer with the clock than in the epochs, less what an epoch's start takes."""
    if not timing["steps_per_s"]:
        return breakdown
    num_steps = timing["steps_per_s"] * timing["epoch_time_s"]
    return breakdown | {
        "instrument_s": breakdown["step_s"] + breakdown["epoch_start_s"] / num_steps - 1 / timing["steps_per_s"]
    }


def _note_limit(record: dict[str, Any], device: Device, rank: Rank, optimizer: torch.optim.Optimizer) -> None:
    """What the device can do at most, and how near the run came to that."""
    num_here = rank.gather(rank.node).count(rank.node)
    shared = 1.0 if device.used != "cpu" else usable_cores() / (num_here * rank.threads)
    before, own_s = read(), time.process_time()
    peak = asdict(probe(device, record["device"]["precision"], rank, shared))
    own_s = sum(s for s, node in rank.gather((time.process_time() - own_s, rank.node)) if node == rank.node)
    cores = os.cpu_count() or 1
    reached = limit(
        record["model"]["flops_per_sample"],
        record["timing"]["samples_per_s"],
        record["batch"]["global_batch_size"],
        **peak,
        breakdown=record["breakdown"],
        optimizer_bytes=sum(rank.gather(bytes_moved(optimizer))),
        pipeline=record["dataset"]["pipeline"],
        precision=record["device"]["precision"],
        disturbances=assess([between(before, read(), own_s, cores)], [], cores).reasons,
    )
    records.update(record, "peak", **peak, **reached)


def bytes_moved(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that one step must read and write: each trained weight and each tensor of its state twice, each gradient
    once."""
    moved = 0
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.requires_grad:
                state = [each for each in optimizer.state.get(weight, {}).values() if torch.is_tensor(each)]
                state_bytes = sum(each.numel() * each.element_size() for each in state)
                moved += 3 * weight.numel() * weight.element_size() + 2 * state_bytes
    return moved
