"""Makes Lightning's Trainer, and silences warnings of Lightning's that don't apply to Laptime."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.machine.device import Device
from laptime.machine.xpu import XPUAccelerator
from laptime.ranks.rank import Rank
from laptime.training import callback_hooks, open_groups
from laptime.training.faults import refusal
from laptime.training.strategy import RankStrategy


def is_profiled(config: Config) -> bool:
    """Whether a profiler is configured. Times measured under a profiler don't count."""
    return config.profiler.get("_target_") is not None


def build_profiler(config: Config, rank: Rank) -> Profiler | None:
    """Build the configured profiler; None: there is none."""
    node = dict(config.profiler)
    if node.get("_target_") is None:
        return None
    # torch 2.14's profiler logs its own state to stderr otherwise: https://github.com/pytorch/pytorch/issues/83383
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    if rank.world_size > 1 and node.get("filename"):  # Lightning sees a single rank
        node["filename"] += f"-rank{rank.rank}"
    profiler: Profiler = open_groups.build_node("profiler", node)
    return profiler


def ddp_arguments(config: Config) -> dict[str, Any]:
    """Return the configured arguments of DistributedDataParallel."""
    names = ("bucket_cap_mb", "gradient_as_bucket_view", "static_graph", "find_unused_parameters")
    return {name: getattr(config.strategy, name) for name in names}


def build_trainer(
    config: Config,
    run_dir: Path,
    device: Device,
    rank: Rank,
    callbacks: list[Callback],
    loggers: list[Logger],
    shards: bool,
) -> pl.Trainer:
    strategy, ddp = config.strategy, ddp_arguments(config)
    if shards:  # the sharded optimizer reads gradients only in DDP's buckets
        ddp["gradient_as_bucket_view"] = True
    # Lightning 2.6 expects the application to set the rank that logs:
    # https://github.com/Lightning-AI/utilities/issues/37
    rank_zero_only.rank = rank.rank  # type: ignore[attr-defined]
    with one_line_refusals(config):
        return pl.Trainer(
            accelerator=XPUAccelerator() if device.used == "xpu" else device.used,
            strategy=RankStrategy(device.torch_device, rank, ddp, strategy.comm_hook, strategy.timeout_s, shards),
            devices=1,
            # Lightning's SLURM and torchrun environments would check their settings against devices=1.
            plugins=LightningEnvironment(),
            max_epochs=config.training.num_laps,
            callbacks=callbacks,
            logger=loggers,
            profiler=build_profiler(config, rank),
            default_root_dir=run_dir,
            # `callbacks` holds the configured checkpoint callbacks. Autocast and gradient scaling are the Stepper's.
            enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            limit_val_batches=1.0 if config.has_validation else 0,
            # Laptime logs once per epoch. Callbacks that log steps read this interval.
            log_every_n_steps=50 if any(map(callback_hooks.needs_single_steps, callbacks)) else 10**9,
            benchmark=config.training.cudnn_benchmark,
        )


@contextmanager
def one_line_refusals(config: Config) -> Iterator[None]:
    """Raise what Lightning refuses about its arguments as a UserError."""
    try:
        yield
    except (MisconfigurationException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "more than one stateful callback" not in str(error):
            raise
        raise UserError(refusal(error, config)) from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's hardware messages, and warnings about settings that are intended here.

    The messages are those of Lightning 2.6 and torch 2.14. Where no issue is linked, they are by design, not reported.
    """
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "The number of training batches",
                ".*sync_dist=True",  # Laptime logs values that are averaged over all ranks already
                ".*does not have many workers",
                "You requested to overfit",
                "Checkpoint directory .* exists",
                ".*You defined a `validation_step` but have no `val_dataloader`",
                ".*isinstance\\(treespec, LeafSpec\\)",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
                ".*on CPU but no GPU",
                # The CNN's gradients are channels_last and its weights are not; no common layout was faster.
                # https://github.com/pytorch/pytorch/issues/47163
                "Grad strides do not match bucket view strides",
                "GPU available but not used",
                ".*Profiler clears events at the end of each cycle",
                "The PyTorch Profiler default schedule will be overridden",
                "This DataLoader will create .* worker processes",
                ".*`srun` command is available",  # Laptime itself refuses several SLURM tasks
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
