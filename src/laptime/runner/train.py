"""One rank's training: build everything from the configuration, fit, test, and write down what came of it."""

import copy
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from laptime.config import targets
from laptime.config.schema import config_hashes, hashed_config, per_rank_batch_size, resolve_warmup_epochs
from laptime.data.datamodule import DataModule
from laptime.data.image_data import ImageData
from laptime.errors import Interrupted, TrainingFailed, UserError, is_for_want_of_memory
from laptime.lap.epoch_recorder import EpochRecorder, over_ranks
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.timed_loader import Pipeline
from laptime.loggers.forgiving import forgiving
from laptime.loggers.resumed import resume_at
from laptime.loggers.tracker import Run, Tracker
from laptime.machine.counters import between, on_battery, read
from laptime.machine.device import Device, check_precision, mps_fallback, usable_cores
from laptime.machine.device import resolve as resolve_device
from laptime.machine.energy import EnergyMeter
from laptime.machine.environment import restraints, set_in_python, without_effect
from laptime.machine.hardware import require_free_memory
from laptime.machine.memory import peak_rss_bytes, reset_peak_rss
from laptime.machine.torch_build import driver_version, torch_build
from laptime.machine.xpu import XPUAccelerator
from laptime.measure.bare_loop import BareLoop
from laptime.measure.breakdown import Breakdown
from laptime.measure.limit import limit
from laptime.measure.peak import probe
from laptime.measure.quality import assess
from laptime.measure.sampler import Sampler
from laptime.ranks.rank import Rank, assert_world
from laptime.ranks.sharded_optimizer import reason_against
from laptime.ranks.stopping import StopRequest, TimeLimitReached
from laptime.record import files as records
from laptime.training import checkpoints, open_groups, step_hooks
from laptime.training.classifier import Classifier
from laptime.training.compile_ahead import CompileAhead
from laptime.training.faults import explaining, refusal
from laptime.training.strategy import RankStrategy
from laptime.training.weight_average import WeightAverage

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
    _note_set_up(config, record, device, rank)
    records.update(record, "strategy", rank_pids=assert_world(rank, rank.world_size))
    if rank.is_first:  # what can't be built is known by its hashes, too, when its sweep is gone on with
        records.write_record(run_dir, record)

    if record["noise"]["load_before"] is None:
        records.update(record, "noise", load_before=read().load, on_battery=on_battery())
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    own_callbacks = _build_callbacks(config)
    data = build_data(config, device, rank)
    _show_each_step(own_callbacks, data, rank)
    network = build_network(config["model"], data.data, rank.world_size // rank.num_nodes)
    _try_network(network, data.data)
    _note_work(record, config, data, network)
    if rank.is_first:
        records.write_record(run_dir, record)

    identity = checkpoints.identity(config, rank.world_size, data.checksum)
    module = build_module(config, network, device, stop, identity, rank, len(data.train_batch_sizes()))
    shards = _shards_optimizer(config, _try_optimizer(module, config), own_callbacks, rank)
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
    sampler = _sampler(config, record, device, rank)
    compiler = CompileAhead(device, data)

    def note_epoch() -> None:
        _note_timing(record, timer, recorder, data, compiler, start)
        _note_result(record, recorder, config["measure"]["target_accuracy"])
        _note_quality(record, recorder, config["runs_at_once"], _is_profiled(config))
        _note_resources(record, recorder, sampler, energy)
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
            _keep_patience(callback)
    bare_loop = BareLoop(device, rank, stop, timer)
    callbacks = [
        *([bare_loop] if config["measure"]["bare_loop"] else []),
        timer,
        recorder,
        *([compiler] if settings["compile"] else []),
        *own_callbacks,
        *([early_stopping] if early_stopping is not None else []),
    ]
    with quiet_lightning(), _logging(config, run_dir, record, rank, done) as loggers:
        try:
            trainer = _build_trainer(config, run_dir, device, rank, callbacks, loggers, shards)
        except (MisconfigurationException, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "more than one stateful callback" not in str(error):
                raise
            raise UserError(refusal(error, config)) from error
        reason = "epochs"
        try:
            if rank.is_first:
                log.info("writing to %s", run_dir)
            stop.immediate = False
            stop.limit(settings["time_limit_s"])
            if sampler is not None:
                sampler.start()
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if stop.signum is not None:
                stop.act()
            if trainer.should_stop:
                if early_stopping is not None and early_stopping.stopped_epoch:
                    reason, how = "early_stopping", f"the validation loss has not improved for {patience} epochs"
                else:
                    reason, how = "callback", "a callback asked for it"
                log.info("stopped early: %s", how)
            elif trainer.max_epochs != settings["epochs"]:
                reason = "callback"
                log.info("a callback set trainer.max_epochs=%s", trainer.max_epochs)
        except TimeLimitReached:
            reason = "time_limit"
            log.info("stopped by training.time_limit_s=%s; the broken epoch is not recorded", settings["time_limit_s"])
        except BaseException as error:
            # Lightning and data workers have answers of their own to a signal; what the user meant is this one.
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
            note_epoch()
        trainer.test(module, datamodule=data, verbose=False)
        test = module.test_means
        assert test is not None
        records.update(record, "result", test_loss=test.loss, test_accuracy=test.accuracy, stop_reason=reason)
        _note_memory(record, rank, device, sampler)
        if rank.is_first:
            records.write_record(run_dir, record)
        if _is_profiled(config):
            log.info("a profiler runs with it: breakdown and peak are not measured")
        else:
            # When all is done that they could disturb: they change weights, and take memory of their own.
            optimizer = trainer.optimizers[0]
            if (sharded := module.sharded(optimizer)) is not None:
                optimizer = sharded.own
            _measure_apart(config, record, device, rank, stop, module, optimizer, data)
        _log_results(loggers, record, config, recorder.rows[-1]["epoch"] if recorder.rows else 0)


def prepare_device(config: Mapping[str, Any], index: int = 0) -> Device:
    """The device that trains, and torch set to compute on it as the configuration says.

    Args:
        config: resolved, plain values.
        index: which of several.

    Raises:
        UserError: it is absent, or can't train in that precision.
    """
    settings = config["training"]
    device = resolve_device(config["device"]["name"], config["device"]["fallback"], index)
    check_precision(settings["precision"], device)
    torch.set_float32_matmul_precision(settings["matmul_precision"])
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    return device


def _measure_apart(
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

    A plain process goes on without them where they fail, for want of memory say. Of several ranks one alone can't.
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
                log.warning("measure.%s: not measured (%s)", name, str(error).partition("\n")[0])
    data.teardown("fit")


def _note_breakdown(record: dict[str, Any], breakdown: Breakdown, module: Classifier, pipeline: Pipeline) -> None:
    breakdown.measure(module, pipeline)
    records.update(record, "breakdown", **_with_instrument_cost(breakdown.breakdown, record["timing"]))
    records.update(record, "communication", **breakdown.communication)
    records.update(record, "contention", **breakdown.contention)


def build_data(config: Mapping[str, Any], device: Device, rank: Rank) -> DataModule:
    settings = config["training"]
    return DataModule(
        open_groups.build(config, "dataset"),
        device,
        batch_size=per_rank_batch_size(settings["batch_size"], settings["batch_scope"], rank.world_size),
        eval_batch_size=settings["eval_batch_size"],
        steps_per_execution=settings["steps_per_execution"],
        seed=config["seed"],
        rank=rank,
    )


def build_module(
    config: Mapping[str, Any],
    network: nn.Module,
    device: Device,
    stop: StopRequest,
    identity: dict[str, Any],
    rank: Rank,
    num_steps_per_epoch: int,
) -> Classifier:
    settings = config["training"]

    def make_scheduler(optimizer: torch.optim.Optimizer) -> Any:
        if config["scheduler"].get("_target_") is None:
            return None
        return open_groups.build(config, "scheduler", optimizer=optimizer, num_steps_per_epoch=num_steps_per_epoch)

    return Classifier(
        network,
        make_optimizer=lambda parameters: open_groups.build(config, "optimizer", params=parameters),
        make_scheduler=make_scheduler,
        device=device,
        seed=config["seed"],
        precision=settings["precision"],
        accumulate_grad_batches=settings["accumulate_grad_batches"],
        gradient_clip_norm=settings["gradient_clip_norm"],
        label_smoothing=settings["label_smoothing"],
        mixup_alpha=settings["mixup_alpha"],
        make_average=partial(
            WeightAverage, ema_decay=settings["ema_decay"], swa_start_epoch=settings["swa_start_epoch"]
        ),
        stop=stop,
        identity=identity,
        rank=rank,
    )


def build_network(node: Mapping[str, Any], source: ImageData, num_ranks: int = 1) -> nn.Module:
    """The network, if it fits into memory.

    Args:
        node: of the configuration.
        source: what it is to look at.
        num_ranks: of this machine, each with a copy.

    Raises:
        UserError: it can't be built with these arguments, or is too large.
        TrainingFailed: there was too little memory after all.
    """
    given = {"input_shape": source.image_shape, "num_classes": source.class_count}
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            weights = list(open_groups.build({"model": node}, "model", **given).parameters())
        num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    except Exception:  # it can't be built without memory; building it below says what is wrong, if something is
        num_bytes = 0
    sizes = ", ".join(f"model.{key}={value}" for key, value in node.items() if key != "_target_")
    key, what = sizes or f"model={node['_target_']}", "weights, and as much of gradients{ranks}"
    require_free_memory(key, num_bytes, what, num_ranks, "Use a smaller model.")
    try:
        network: nn.Module = open_groups.build({"model": node}, "model", **given)
    except Exception as error:
        if not is_for_want_of_memory(error):
            raise
        raise TrainingFailed(
            f"out of memory while the model is built, which has {num_bytes / 1e9:.2f} GB of weights ({key}). "
            "Use a smaller model, or fewer ranks."
        ) from error
    return network


def _try_network(network: nn.Module, source: ImageData) -> None:
    """Put two made-up images through the network before anything is trained.

    Raises:
        UserError: it fails, does not give one logit per class and image, or has nothing to train.
    """
    expected, images = (2, source.class_count), torch.zeros(2, *source.image_shape)
    name = f"model={type(network).__name__}"
    if any(isinstance(weight, UninitializedParameter) for weight in network.parameters()):
        raise UserError(
            f"{name}: has lazy layers, whose weights are made at the first batch. Give them their numbers of inputs."
        )
    before = copy.deepcopy(network.state_dict())
    try:
        logits = network.eval()(images)
        if isinstance(logits, torch.Tensor) and not logits.requires_grad:  # perhaps in evaluation alone
            with torch.random.fork_rng(devices=[]):
                is_trained = getattr(network.train()(images), "requires_grad", False)
        else:
            is_trained = True
    except Exception as error:
        if is_for_want_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: fails on images of shape {source.image_shape} ({reason}).") from error
    network.load_state_dict(before)
    network.train()
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != expected or not logits.is_floating_point():
        raise UserError(
            f"{name}: gives {shape} for two images; with {source.class_count} classes it must give logits of shape "
            f"{expected}."
        )
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UserError(
            f"{name}: has no weight to train: none has requires_grad=True. Set it where the network learns."
        )
    if not is_trained:
        raise UserError(
            f"{name}: its logits have no gradient. Leave out what takes it away: .detach(), torch.no_grad()."
        )


def _try_optimizer(module: Classifier, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Take one step of optimizer and scheduler before anything is trained: some refuse their arguments only then.

    Returns:
        The optimizer; training makes another one.

    Raises:
        UserError: one of them did.
    """
    built: dict[str, Any] = module.configure_optimizers()
    if any(parameter.grad is not None for parameter in module.parameters()):
        raise AssertionError("a step on gradients would train")
    try:
        built["optimizer"].step()
    except Exception as error:
        if is_for_want_of_memory(error):
            raise
        raise UserError(f"{targets.shown('optimizer', config['optimizer'])}: can't take a step ({error}).") from error
    try:
        scheduler = built.get("lr_scheduler")
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(0.0)
        elif scheduler is not None:
            scheduler.step()
    except Exception as error:
        if is_for_want_of_memory(error):
            raise
        raise UserError(f"{targets.shown('scheduler', config['scheduler'])}: can't take a step ({error}).") from error
    optimizer: torch.optim.Optimizer = built["optimizer"]
    return optimizer


def _shards_optimizer(
    config: Mapping[str, Any], optimizer: torch.optim.Optimizer, callbacks: list[Callback], rank: Rank
) -> bool:
    """Whether each rank updates a share of the weights.

    Raises:
        UserError: that was asked for, and can't be.
    """
    strategy = config["strategy"]
    if strategy["comm_hook"] != "shared_memory" or not strategy["shard_optimizer"] or not rank.is_distributed:
        return False
    reason = reason_against(optimizer, config["training"]["gradient_clip_norm"])
    if config["measure"]["bare_loop"]:
        reason = "measure.bare_loop=true updates all weights on each rank, and would compare other work"
    if step_hooks.heard(callbacks):
        reason = "a callback may look at the gradients, of which each rank would hold averages of its share alone"
    if reason is not None and strategy["shard_optimizer"] is True:
        raise UserError(f"strategy.shard_optimizer=true: {reason}. Use strategy.shard_optimizer=auto.")
    if reason is not None and rank.is_first:
        log.info("the optimizer is not sharded: %s", reason)
    return reason is None


def _build_callbacks(config: Mapping[str, Any]) -> list[Callback]:
    return [open_groups.build(config, key) for key in open_groups.keys_of(config, "callbacks")]


def _show_each_step(callbacks: list[Callback], data: DataModule, rank: Rank) -> None:
    """Let Lightning carry one step at a time where a callback looks at them."""
    watching = [type(each).__name__ for each in callbacks if step_hooks.looks_at_steps(each)]
    if watching and data.steps_per_execution > 1:
        data.steps_per_execution = 1
        if rank.is_first:
            log.info("training.steps_per_execution=1: %s looks at single steps", ", ".join(watching))


def _keep_patience(callback: EarlyStopping) -> None:
    """Let a callback wait as long as it is told now: Lightning takes the patience of the run that left a checkpoint."""
    load_state_dict = callback.load_state_dict

    def load(state_dict: dict[str, Any]) -> None:
        load_state_dict({**state_dict, "patience": callback.patience})

    callback.load_state_dict = load  # type: ignore[method-assign]


def _build_loggers(config: Mapping[str, Any], resumed_at: int | None) -> list[Logger]:
    """The loggers.

    Args:
        resumed_at: the first epoch that will be trained; None: this is the start of the run.
    """
    found = []
    for key in open_groups.keys_of(config, "logger"):
        logger = open_groups.build(config, key)
        if resumed_at is not None:
            resume_at(logger, resumed_at)
        found.append(forgiving(key.partition(".")[2], logger))
    return [logger for logger in found if logger is not None]


def end_trackers(config: Mapping[str, Any], run_dir: Path, record: Mapping[str, Any], status: str) -> None:
    """Tell the trackers how a run has ended whose first rank could not.

    Args:
        status: failed or interrupted.
    """
    for name, node in config["logger"].items():
        if node is None or not getattr(targets.locate(f"logger.{name}", node), "outlives_its_process", False):
            continue
        tracker = forgiving(name, targets.build(f"logger.{name}", node, Tracker))
        if isinstance(tracker, Tracker):
            tracker.begin(Run.of(record, run_dir, config["run_label"]))
            tracker.end(status)


@contextmanager
def _logging(
    config: Mapping[str, Any], run_dir: Path, record: Mapping[str, Any], rank: Rank, done: int
) -> Iterator[list[Logger]]:
    """The loggers, of the first rank alone; trackers are told what the run is, and how it ended.

    Args:
        done: epochs that are trained already.
    """
    loggers = _build_loggers(config, done if done or rank.attempt else None) if rank.is_first else []
    trackers = [logger for logger in loggers if isinstance(logger, Tracker)]
    status = "failed"
    try:
        for tracker in trackers:
            tracker.begin(Run.of(record, run_dir, config["run_label"]))
        for logger in loggers:
            if not isinstance(logger, pl.loggers.TensorBoardLogger):  # which takes them with what came of them
                _log_settings(logger, config)
        yield loggers
        status = "completed"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        for tracker in trackers:
            tracker.end(status)
            tracker.release()


def _log_settings(logger: Logger, config: Mapping[str, Any]) -> None:
    log_hyperparams: Callable[..., None] = logger.log_hyperparams
    log_hyperparams(records.flat_config(config))


def _is_profiled(config: Mapping[str, Any]) -> bool:
    """Whether a profiler runs with the training: then nothing that it runs with is a measurement."""
    return config["profiler"].get("_target_") is not None


def _build_profiler(config: Mapping[str, Any], rank: Rank) -> Profiler | None:
    node = dict(config["profiler"])
    if node.get("_target_") is None:
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler would write of its own state to stderr
    if rank.world_size > 1 and node.get("filename"):  # Lightning knows of one rank only
        node["filename"] += f"-rank{rank.rank}"
    profiler: Profiler = open_groups.build({**config, "profiler": node}, "profiler")
    return profiler


def _build_trainer(
    config: Mapping[str, Any],
    run_dir: Path,
    device: Device,
    rank: Rank,
    callbacks: list[Callback],
    loggers: list[Logger],
    shards: bool,
) -> pl.Trainer:
    strategy = config["strategy"]
    ddp = {key: strategy[key] for key in ("bucket_cap_mb", "gradient_as_bucket_view", "static_graph")}
    if shards:
        ddp["gradient_as_bucket_view"] = True  # nobody needs them outside the buckets
    rank_zero_only.rank = rank.rank  # type: ignore[attr-defined]
    return pl.Trainer(
        accelerator=XPUAccelerator() if device.used == "xpu" else device.used,
        strategy=RankStrategy(device.torch_device, rank, ddp, strategy["comm_hook"], strategy["timeout_s"], shards),
        devices=1,
        # Lightning's idea of SLURM or torchrun would check their settings against the one device it sees.
        plugins=LightningEnvironment(),
        max_epochs=config["training"]["epochs"],
        callbacks=callbacks,
        logger=loggers,
        profiler=_build_profiler(config, rank),
        default_root_dir=run_dir,
        # Ours are in `callbacks`; autocast and the gradient scaler are the Classifier's, once per optimizer step.
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        limit_val_batches=1.0 if config["dataset"]["val_fraction"] else 0,
        # Laptime's own values are written once an epoch. Callbacks ask how often they should.
        log_every_n_steps=50 if any(map(step_hooks.looks_at_steps, callbacks)) else 10**9,
        benchmark=config["training"]["cudnn_benchmark"],
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on hardware, and its advice on settings that are here what they should be."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "The number of training batches",
                ".*sync_dist=True",  # the figures are those of all ranks already
                ".*does not have many workers",
                "You requested to overfit",
                "Checkpoint directory .* exists",
                ".*You defined a `validation_step` but have no `val_dataloader`",
                ".*isinstance\\(treespec, LeafSpec\\)",
                ".*on CPU but no GPU",
                # The gradients of the CNN come as channels_last; the weights don't, and no layout of both was faster.
                "Grad strides do not match bucket view strides",
                "GPU available but not used",
                ".*Profiler clears events at the end of each cycle",
                "The PyTorch Profiler default schedule will be overridden",
                "This DataLoader will create .* worker processes",
                ".*`srun` command is available",  # Laptime refuses several of its tasks
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def count_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """Floating-point operations of one training step per sample, forward and backward, as torch's own counter has
    them (a multiplication and an addition are two); None where it can't follow the network.
    """
    try:
        on_meta = copy.deepcopy(network).to("meta").eval()
        with FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            # Two samples: some layers refuse to take one.
            on_meta(torch.zeros(2, *image_shape, device="meta")).sum().backward()
        return int(counter.get_total_flops()) // 2
    except Exception as error:  # of whatever kind: the figure is no reason to fail
        log.debug("FLOPs not counted: %s", error)
        return None


def _convolution_backward_flops(
    grad_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Of the backward pass of a convolution. torch's own formula takes the groups of a grouped one for one."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = rest
    forward = conv_flop_count(list(x_shape), list(w_shape), list(grad_shape), transposed)
    return forward * sum(wanted[:2])  # for the inputs and for the weights as many as forward


_FLOPS = {torch.ops.aten.convolution_backward: _convolution_backward_flops}


def _note_set_up(config: Mapping[str, Any], record: dict[str, Any], device: Device, rank: Rank) -> None:
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


def _note_work(record: dict[str, Any], config: Mapping[str, Any], data: DataModule, network: nn.Module) -> None:
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


def name_of(network: nn.Module) -> str:
    """The class, unless the network knows a name that says more."""
    name = getattr(network, "name", None)
    return name if isinstance(name, str) else type(network).__name__.lower()


def _note_timing(
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


def _sampler(config: Mapping[str, Any], record: Mapping[str, Any], device: Device, rank: Rank) -> Sampler | None:
    """Of all ranks of this machine, on the first of them; None: another rank's matter, or not wanted."""
    nodes = rank.gather(rank.node)
    pids = [pid for pid, node in zip(record["strategy"]["rank_pids"], nodes, strict=True) if node == rank.node]
    measure = config["measure"]
    if rank.local_rank != 0 or measure["sample_interval_s"] is None:
        return None
    return Sampler(pids, device, measure["sample_interval_s"], measure["memory_warning"])


def _note_resources(
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


def _note_memory(record: dict[str, Any], rank: Rank, device: Device, sampler: Sampler | None) -> None:
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


def _note_quality(record: dict[str, Any], recorder: EpochRecorder, runs_at_once: int, profiled: bool) -> None:
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


def _note_result(record: dict[str, Any], recorder: EpochRecorder, target_accuracy: float | None) -> None:
    if not recorder.rows:
        return
    last = recorder.rows[-1]
    columns = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    records.update(record, "result", **{column: last[column] for column in columns})
    if target_accuracy is not None:
        records.update(record, "result", time_to_accuracy=time_to_accuracy(epochs_of(recorder.rows), target_accuracy))


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


def time_to_accuracy(rows: list[dict[str, Any]], target: float) -> float | None:
    """Seconds of training, warm-up included, until the validation accuracy first reached the target.

    None: never, or it is not known what was trained before a checkpoint.

    Args:
        rows: of one rank, in order, with epoch_time_s and val_accuracy.
        target: a share of 1.
    """
    elapsed = 0.0
    if rows and rows[0]["epoch"] > 0:
        return None
    for row in rows:
        elapsed += row["epoch_time_s"]
        if row["val_accuracy"] is not None and row["val_accuracy"] >= target:
            return elapsed
    return None


def _log_results(loggers: list[Logger], record: dict[str, Any], config: Mapping[str, Any], last_epoch: int) -> None:
    result, timing = record["result"], record["timing"]
    metrics = {tag: (result | timing)[tag.removeprefix("hparam/")] for tag in records.HPARAM_METRICS}
    known = {name: value for name, value in metrics.items() if value is not None}
    last = {"test/accuracy": result["test_accuracy"], "test/loss": result["test_loss"]}
    for tag in ("comm", "contention", "breakdown", "peak", "bare_loop"):
        section = record["communication" if tag == "comm" else tag]
        last |= {f"{tag}/{name}": value for name, value in section.items() if isinstance(value, int | float)}
    for logger in loggers:
        with suppress(OSError):  # the logger has said so
            _log_result(logger, config, known, last, last_epoch)


def _log_result(
    logger: Logger, config: Mapping[str, Any], known: dict[str, Any], last: dict[str, Any], last_epoch: int
) -> None:
    logger.log_metrics(last, step=last_epoch)
    if isinstance(logger, pl.loggers.TensorBoardLogger) and not config["run_label"]:
        log_hyperparams: Callable[..., None] = logger.log_hyperparams
        log_hyperparams(records.flat_config(config), known)  # writes the metrics, too
    else:
        logger.log_metrics(known, step=last_epoch)
    if isinstance(logger, pl.loggers.TensorBoardLogger) and config["run_label"]:
        # What differs between the runs of a sweep, and which metrics matter, its report says for all of them.
        from torch.utils.tensorboard.summary import hparams

        _, *session = hparams(records.flat_config(config), known)
        for part in session:
            logger.experiment._get_file_writer().add_summary(part)
    logger.finalize("success")
