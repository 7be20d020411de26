"""Does one run in one rank: builds the configured objects, trains, tests and measures, and fills in the record."""

import logging

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from laptime.config.schema import OWN
from laptime.config.validate import resolve_warmup_epochs
from laptime.data.datamodule import DataModule
from laptime.lap.clock import LapClock
from laptime.lap.epoch_recorder import EpochRecorder
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.recorder import LapRecorder
from laptime.loggers.fail_safe import quiet_writer_threads
from laptime.machine.device import Device
from laptime.machine.energy import EnergyMeter
from laptime.measure.bare_loop import BareLoop
from laptime.ranks.rank import Rank
from laptime.record.files import SAMPLE_FILE, epoch_rows
from laptime.record.schema import filled
from laptime.runner.context import RunContext
from laptime.runner.fit import early_stopping_of, fit
from laptime.runner.recording import (
    begin,
    make_sampler,
    measure_breakdown_and_peak,
    note_flops,
    note_memory,
    note_quality,
    note_resources,
    note_result,
    note_timing,
    note_workload,
)
from laptime.runner.trackers import log_results, tracked
from laptime.runner.train_own import train_own
from laptime.tasks.choose import make_task
from laptime.text import escape_control_chars
from laptime.training import checkpoints
from laptime.training.build import (
    build_callbacks,
    build_data,
    build_module,
    build_network,
    use_single_steps,
)
from laptime.training.capabilities import HasStepper, HasTestMeans, missing_attributes
from laptime.training.compile_ahead import CompileAhead
from laptime.training.faults import translated_errors
from laptime.training.trainer import build_trainer, is_profiled, quiet_lightning
from laptime.training.trial_step import shards_optimizer, try_network, try_optimizer

log = logging.getLogger(__name__)


def train(run: RunContext, rank: Rank) -> None:
    """Train and measure as the configuration says, and fill in the record step by step.

    Every rank calls this; the first rank writes run.json.

    Args:
        run: the run, whose record is filled in.
        rank: this process, which is pinned to its cores and has joined the process group.

    Raises:
        UserError: the configured objects can't be built on this machine.
        TrainingFailed, Interrupted: training ended early; the record holds the measurements until then.
    """
    with translated_errors(run.config):
        (train_own if run.config.task.name == OWN else _train)(run, rank)


def _train(run: RunContext, rank: Rank) -> None:
    config, run_dir, record = run.config, run.run_dir, run.record
    settings = config.training
    device = begin(run, rank)
    pl.seed_everything(config.seed, workers=False, verbose=False)
    user_callbacks = build_callbacks(config)
    clock = LapClock(device, EnergyMeter(device) if rank.local_rank == 0 else None)
    data = build_data(config, device, rank, clock)
    use_single_steps(user_callbacks, data, rank)
    network = build_network(config.model, data.data, rank.world_size // rank.num_nodes)
    try_network(network, data.data)
    note_workload(record, config, data, network)
    if rank.is_first:
        record.write(run_dir)

    identity = checkpoints.identity(config.as_dict(), rank.world_size, data.checksum)
    module = build_module(config, network, device, run.stop, identity, rank, data.num_steps_per_epoch)
    is_sharded = shards_optimizer(config, try_optimizer(module, config), user_callbacks, rank)
    filled(record.strategy).shards_optimizer = is_sharded
    checkpoint, num_done = None, 0
    if settings.checkpoint is not None:
        checkpoint = checkpoints.find_on_all_ranks(settings.checkpoint, rank, run_dir)
        # Restarted ranks may have died after the last epoch. Then only the test remains.
        num_done = checkpoints.require_resumable(checkpoint, identity, settings, is_restarted=rank.attempt > 0)
        log.info("resuming from %s", checkpoint)
    instruments = _Instruments(run, rank, device, data, remaining=settings.num_laps - (0 if rank.attempt else num_done))
    early_stopping = early_stopping_of(config, user_callbacks)
    callbacks = [*instruments.callbacks(), *user_callbacks, *([early_stopping] if early_stopping is not None else [])]
    with quiet_lightning(), quiet_writer_threads(), tracked(run, rank, num_done) as loggers:
        trainer = build_trainer(config, run_dir, device, rank, callbacks, loggers, is_sharded)
        if rank.is_first:
            log.info("writing to %s", run_dir)
        try:
            reason = fit(run, trainer, module, data, checkpoint, instruments.sampler, early_stopping)
        finally:
            instruments.note_epoch()
        _test(run, trainer, module, data)
        record.result.stop_reason = reason
        note_memory(record, rank, device, instruments.sampler)
        note_flops(record, data, network)
        if rank.is_first:
            _write_sample(run, network, data)
            record.write(run_dir)
        if is_profiled(config):
            log.info("breakdown and peak are not measured under a profiler")
        else:
            # At the very end, because these measurements change weights and allocate memory.
            optimizer = trainer.optimizers[0]
            if isinstance(module, HasStepper) and (sharded := module.stepper.sharded(optimizer)) is not None:
                optimizer = sharded.local
            measure_breakdown_and_peak(run, device, rank, module, optimizer, data)
        log_results(loggers, run, instruments.laps.rows[-1].epoch if instruments.laps.rows else 0)


class _Instruments:
    """The objects that measure the epochs: timer, sampler, bare loop, recorder.

    Args:
        remaining: the number of epochs (or laps) to train.
    """

    def __init__(self, run: RunContext, rank: Rank, device: Device, data: DataModule, remaining: int) -> None:
        self.run = run
        self.rank = rank
        self.data = data
        warmup_epochs = resolve_warmup_epochs(run.config.measure.warmup_epochs, remaining)
        self.timer = EpochTimer(data.clock, warmup_epochs, data.data.tokens_per_sample)
        self.sampler = make_sampler(run.config, run.record, device, rank)
        self.compiler = CompileAhead(device, data)
        self.bare_loop = BareLoop(device, rank, run.stop, self.timer)
        self.laps = LapRecorder(run.run_dir, rank)
        if rank.attempt and rank.is_first:
            self.laps.rows += epoch_rows(run.run_dir)  # keep the epochs of earlier attempts

    def callbacks(self) -> list[Callback]:
        """The measuring callbacks, which must come before the configured callbacks."""
        measure, training = self.run.config.measure, self.run.config.training
        callbacks: list[Callback] = [self.bare_loop] if measure.bare_loop else []
        callbacks += [
            self.timer,
            EpochRecorder(
                self.timer,
                self.laps,
                self.note_epoch,
                self.run.config.score,
                make_task(self.run.config).score_of,
                training.lap_word,
            ),
        ]
        return [*callbacks, self.compiler] if training.compile else callbacks

    def note_epoch(self) -> None:
        """Fill in the record after an epoch and at the end of training."""
        config, record = self.run.config, self.run.record
        note_timing(record, self.timer, self.laps, self.data, self.compiler, self.run.start)
        note_result(record, self.laps, config.score, config.measure.target)
        note_quality(record, self.laps, self.run.runs_at_once, is_profiled(config))
        note_resources(record, self.laps, self.sampler, self.data.clock.energy)
        record.bare_loop = self.bare_loop.measured
        if self.rank.is_first:
            record.write(self.run.run_dir)


def _test(run: RunContext, trainer: pl.Trainer, module: pl.LightningModule, data: DataModule) -> None:
    if not isinstance(module, HasTestMeans):
        if trainer.is_global_zero:
            log.warning("the test is skipped: %s", missing_attributes(module, HasTestMeans))
        return
    trainer.test(module, datamodule=data, verbose=False)
    test = module.test_means
    assert test is not None
    result, score_of = run.record.result, make_task(run.config).score_of
    result.test_loss, result.test_accuracy, result.test_score = test.loss, test.accuracy, score_of(test)


def _write_sample(run: RunContext, network: nn.Module, data: DataModule) -> None:
    """Write what the network has learned to say, if the task produces text. It affects no figure."""
    before = network.training
    text = make_task(run.config).sample(network.eval(), data, run.config.seed)
    network.train(before)
    if text is not None:
        (run.run_dir / SAMPLE_FILE).write_text(f"{text}\n", encoding="utf-8")
        shown = "\n".join(map(escape_control_chars, text.splitlines()))
        log.info("the network continues the beginning of the test set (%s):\n%s", SAMPLE_FILE, shown)
