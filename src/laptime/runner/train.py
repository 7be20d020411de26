"""One run in one rank: builds what the configuration describes, trains and measures it, writes down what came of it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from laptime.config.validate import resolve_warmup_epochs
from laptime.data.datamodule import DataModule
from laptime.errors import Interrupted
from laptime.lap.epoch_recorder import EpochRecorder
from laptime.lap.epoch_timer import EpochTimer
from laptime.loggers.forgiving import quiet_writer_threads
from laptime.machine.counters import on_battery, read
from laptime.machine.energy import EnergyMeter
from laptime.machine.memory import reset_peak_rss
from laptime.measure.bare_loop import BareLoop
from laptime.measure.sampler import Sampler
from laptime.ranks.rank import Rank, assert_world
from laptime.ranks.stopping import StopRequest, TimeLimitReached
from laptime.record import files as records
from laptime.runner.recording import (
    make_sampler,
    measure_apart,
    note_memory,
    note_quality,
    note_resources,
    note_result,
    note_set_up,
    note_timing,
    note_work,
)
from laptime.runner.trackers import log_results, tracked
from laptime.training import checkpoints
from laptime.training.build import (
    build_callbacks,
    build_data,
    build_module,
    build_network,
    keep_patience,
    prepare_device,
    show_each_step,
)
from laptime.training.classifier import Classifier
from laptime.training.compile_ahead import CompileAhead
from laptime.training.faults import explaining
from laptime.training.trainer import build_trainer, is_profiled, quiet_lightning
from laptime.training.trial_step import shards_optimizer, try_network, try_optimizer

log = logging.getLogger(__name__)


def train(
    config: Mapping[str, Any], run_dir: Path, record: dict[str, Any], rank: Rank, stop: StopRequest, start: float
) -> None:
    """Train and measure as the configuration says; everything that is learnt goes into the record as it is learnt.

    Runs in every rank; the first one writes.

    Args:
        config: resolved, plain values.
        run_dir: absolute; exists.
        record: of this run; its sections are filled in.
        rank: this process, settled on its cores, in its process group.
        stop: says when to end early.
        start: `time.time()` when the run began.

    Raises:
        UserError: what was asked for can't be built on this machine.
        TrainingFailed, Interrupted: as the names say; what was measured until then is in the record.
    """
    with explaining(config):
        _train(config, run_dir, record, rank, stop, start)


def _train(
    config: Mapping[str, Any], run_dir: Path, record: dict[str, Any], rank: Rank, stop: StopRequest, start: float
) -> None:
    settings = config["training"]
    reset_peak_rss()
    device = prepare_device(config, rank.local_rank)
    note_set_up(config, record, device, rank)
    records.update(record, "strategy", rank_pids=assert_world(rank, rank.world_size))
    if rank.is_first:  # when a sweep is resumed, runs that could not be built are known by their hashes
        records.write_record(run_dir, record)

    if record["noise"]["load_before"] is None:
        records.update(record, "noise", load_before=read().load, on_battery=on_battery())
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    own_callbacks = build_callbacks(config)
    data = build_data(config, device, rank)
    show_each_step(own_callbacks, data, rank)
    network = build_network(config["model"], data.data, rank.world_size // rank.num_nodes)
    try_network(network, data.data)
    note_work(record, config, data, network)
    if rank.is_first:
        records.write_record(run_dir, record)

    identity = checkpoints.identity(config, rank.world_size, data.checksum)
    module = build_module(config, network, device, stop, identity, rank, len(data.train_batch_sizes()))
    shards = shards_optimizer(config, try_optimizer(module, config), own_callbacks, rank)
    records.update(record, "strategy", shards_optimizer=shards)
    checkpoint, done = None, 0
    if settings["checkpoint"] is not None:
        checkpoint = checkpoints.find_for_all(settings["checkpoint"], rank, run_dir)
        # Ranks that were started again may have died after their last epoch: they have the test still to do.
        done = checkpoints.load(checkpoint, identity, settings["epochs"] + (1 if rank.attempt else 0))
        log.info("resuming from %s", checkpoint)
    remaining = settings["epochs"] - (0 if rank.attempt else done)
    warmup = resolve_warmup_epochs(config["measure"]["warmup_epochs"], remaining)
    energy = EnergyMeter(device) if rank.local_rank == 0 else None
    timer = EpochTimer(device, warmup, energy)
    sampler = make_sampler(config, record, device, rank)
    compiler = CompileAhead(device, data)

    def note_epoch() -> None:
        note_timing(record, timer, recorder, data, compiler, start)
        note_result(record, recorder, config["measure"]["target_accuracy"])
        note_quality(record, recorder, config["runs_at_once"], is_profiled(config))
        note_resources(record, recorder, sampler, energy)
        records.update(record, "bare_loop", **bare_loop.bare_loop)
        if rank.is_first:
            records.write_record(run_dir, record)

    recorder = EpochRecorder(timer, run_dir, rank, note_epoch)
    if rank.attempt and rank.is_first:
        recorder.rows += records.epoch_rows(run_dir)  # what the attempts before have measured stays
    patience = settings["early_stopping_patience"]
    early_stopping = None if patience is None else EarlyStopping("val_loss", patience=patience)
    for callback in [*own_callbacks, *([early_stopping] if early_stopping is not None else [])]:
        if isinstance(callback, EarlyStopping):
            keep_patience(callback)
    bare_loop = BareLoop(device, rank, stop, timer)
    callbacks = [
        *([bare_loop] if config["measure"]["bare_loop"] else []),
        timer,
        recorder,
        *([compiler] if settings["compile"] else []),
        *own_callbacks,
        *([early_stopping] if early_stopping is not None else []),
    ]
    with quiet_lightning(), quiet_writer_threads(), tracked(config, run_dir, record, rank, done) as loggers:
        trainer = build_trainer(config, run_dir, device, rank, callbacks, loggers, shards)
        if rank.is_first:
            log.info("writing to %s", run_dir)
        try:
            reason = _fit(config, trainer, module, data, checkpoint, stop, sampler, early_stopping)
        finally:
            note_epoch()
        trainer.test(module, datamodule=data, verbose=False)
        test = module.test_means
        assert test is not None
        records.update(record, "result", test_loss=test.loss, test_accuracy=test.accuracy, stop_reason=reason)
        note_memory(record, rank, device, sampler)
        if rank.is_first:
            records.write_record(run_dir, record)
        if is_profiled(config):
            log.info("a profiler runs with it: breakdown and peak are not measured")
        else:
            # When all is done that they could disturb: they change weights, and take memory of their own.
            optimizer = trainer.optimizers[0]
            if (sharded := module.sharded(optimizer)) is not None:
                optimizer = sharded.own
            measure_apart(config, record, device, rank, stop, module, optimizer, data)
        log_results(loggers, record, config, recorder.rows[-1]["epoch"] if recorder.rows else 0)


def _fit(
    config: Mapping[str, Any],
    trainer: pl.Trainer,
    module: Classifier,
    data: DataModule,
    checkpoint: Path | None,
    stop: StopRequest,
    sampler: Sampler | None,
    early_stopping: EarlyStopping | None,
) -> str:
    """Train until the last epoch, or until something ends it.

    Returns:
        Why it ended, as `result.stop_reason` has it: epochs, early_stopping, callback or time_limit.

    Raises:
        Interrupted: a signal asked for it, whatever Lightning or a data worker made of that.
    """
    settings = config["training"]
    try:
        stop.immediate = False
        stop.limit(settings["time_limit_s"])
        if sampler is not None:
            sampler.start()
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if stop.signum is not None:
            stop.act()
        if trainer.should_stop:
            if early_stopping is not None and early_stopping.stopped_epoch:
                patience = settings["early_stopping_patience"]
                log.info("stopped early: the validation loss has not improved for %s epochs", patience)
                return "early_stopping"
            log.info("stopped early: a callback asked for it")
            return "callback"
        if trainer.max_epochs != settings["epochs"]:
            log.info("a callback set trainer.max_epochs=%s", trainer.max_epochs)
            return "callback"
        return "epochs"
    except TimeLimitReached:
        log.info("stopped by training.time_limit_s=%s; the broken epoch is not recorded", settings["time_limit_s"])
        return "time_limit"
    except BaseException as error:
        if stop.signum is not None and not isinstance(error, Interrupted):
            raise Interrupted(stop.signum) from error
        raise
    finally:
        stop.limit(None)
        stop.expired = False
        data.teardown("fit")
        if sampler is not None:
            sampler.stop()
        stop.immediate = True
