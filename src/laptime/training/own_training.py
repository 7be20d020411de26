"""Builds the Trainer and the callbacks for a LightningModule of the user's (`task=own`)."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import SingleDeviceStrategy, Strategy
from pytorch_lightning.utilities.model_helpers import is_overridden

from laptime.config.schema import Config
from laptime.data.order import epoch_seed
from laptime.errors import UserError
from laptime.machine.device import Device
from laptime.machine.xpu import XPUAccelerator
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.training.callback_hooks import require_plain_states
from laptime.training.checkpoints import IDENTITY
from laptime.training.ranks_ddp import RanksDDP
from laptime.training.trainer import build_profiler, ddp_arguments, one_line_refusals

log = logging.getLogger(__name__)


def require_supported(config: Config, module: pl.LightningModule) -> None:
    """Refuse settings that this module can't follow.

    Raises:
        UserError: names the setting and what to do instead.
    """
    training, name = config.training, type(module).__name__
    if not is_overridden("training_step", module, pl.LightningModule):
        raise UserError(f"task.module._target_={config.task.module['_target_']}: {name} has no training_step.")
    if module.automatic_optimization:
        return
    for key, remedy in (
        ("gradient_clip_norm", "Call clip_gradients in its training_step, and use training.gradient_clip_norm=null."),
        ("max_steps", "Lightning counts the steps of each of its optimizers. Use training.epochs."),
    ):
        if (value := getattr(training, key)) is not None:
            raise UserError(
                f"training.{key}={value}: {name} takes its optimizer steps itself (automatic_optimization=False). "
                f"{remedy}"
            )


def build_own_trainer(
    config: Config, run_dir: Path, device: Device, rank: Rank, callbacks: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    training, has_steps = config.training, config.training.max_steps is not None
    with one_line_refusals(config):
        trainer = pl.Trainer(
            accelerator=XPUAccelerator() if device.used == "xpu" else device.used,
            strategy=_strategy(config, device, rank),
            devices=rank.world_size // rank.num_nodes if rank.is_distributed else 1,
            num_nodes=rank.num_nodes if rank.is_distributed else 1,
            # Lightning's SLURM and torchrun environments would check their settings against devices=1.
            plugins=None if rank.is_distributed else LightningEnvironment(),
            precision=training.precision,  # type: ignore[arg-type]
            max_epochs=-1 if has_steps else training.epochs,
            max_steps=training.max_steps if training.max_steps is not None else -1,
            gradient_clip_val=training.gradient_clip_norm,
            callbacks=callbacks,
            # A module may use its logger on every rank.
            logger=loggers if rank.is_first else [DummyLogger()],
            profiler=build_profiler(config, rank),
            default_root_dir=run_dir,
            enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            benchmark=training.cudnn_benchmark,
        )
    # Lightning 2.6's own handler of SIGTERM broadcasts to the other ranks. If a rank is in another collective at that
    # moment, all ranks wait forever (not reported). StopsOnRequest ends the training instead.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(config: Config, device: Device, rank: Rank) -> Strategy:
    if not rank.is_distributed:
        return SingleDeviceStrategy(device.torch_device)
    strategy = config.strategy
    return RanksDDP(device.torch_device, rank, ddp_arguments(config), strategy.comm_hook, strategy.timeout_s)


class StopsOnRequest(Callback):
    """Carries out a request to stop after a batch. At a time limit, all ranks stop after the same batch."""

    def __init__(self, stop: StopRequest, rank: Rank) -> None:
        self.stop = stop
        self.rank = rank

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.stop.has_deadline:
            self.stop.expired = self.rank.any_rank(self.stop.is_overdue())
        if self.stop.requested:
            self.stop.act()


class SeedsEpochs(Callback):
    """Seeds torch at the start of every epoch, so that a run that resumes after an epoch equals an undisturbed one.

    All ranks get the same seed, as from Lightning's seed_everything.

    Args:
        seed: the seed of the run.
        first_epoch: the first epoch that this process trains. Its loader is made before the epoch starts.
    """

    def __init__(self, seed: int, first_epoch: int) -> None:
        self.seed = seed
        self.first_epoch = first_epoch

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(epoch_seed(self.seed, self.first_epoch))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch != self.first_epoch:
            torch.manual_seed(epoch_seed(self.seed, trainer.current_epoch))


class LabelsCheckpoints(Callback):
    """Adds the run's identity to checkpoints, and leaves out hyperparameters that can't be loaded safely.

    Args:
        identity: the settings that a resumed run must share.
        rank: this process.
    """

    def __init__(self, identity: Mapping[str, Any], rank: Rank) -> None:
        self.identity = dict(identity)
        self.rank = rank
        self._left_out: set[str] = set()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[IDENTITY] = self.identity
        require_plain_states(checkpoint["callbacks"])
        for key in (pl_module.CHECKPOINT_HYPER_PARAMS_KEY, pl.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
            parameters = checkpoint.get(key, {})
            for name in [name for name, value in parameters.items() if not _is_plain(value)]:
                del parameters[name]
                self._warn(name)

    def _warn(self, name: str) -> None:
        if name not in self._left_out and self.rank.is_first:
            log.info(
                "checkpoints hold no hyperparameter %s, because it is an object: "
                "save_hyperparameters(ignore=['%s']) leaves it out, too",
                name,
                name,
            )
        self._left_out.add(name)


def _is_plain(value: Any) -> bool:
    """Whether torch.load(weights_only=True) reads a value back."""
    content = io.BytesIO()
    try:
        torch.save(value, content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except Exception:  # a user's object may raise anything when it is pickled
        return False
    return True
