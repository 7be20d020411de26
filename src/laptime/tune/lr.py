"""Finds a learning rate to start from: Lightning's range test on the run's model, data and optimizer."""

import io
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.tuner import Tuner
from torch import Tensor, nn

from laptime.config.schema import Config
from laptime.errors import TrainingFailed, UserError
from laptime.lap.timed_loader import Batch
from laptime.machine.device import Device
from laptime.machine.xpu import XPUAccelerator
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.training.build import build_data, build_module, build_network, network_name
from laptime.training.capabilities import Retrainable
from laptime.training.trainer import quiet_lightning

# Lightning ignores the first steps, whose loss isn't smooth yet, and the last step. It needs two others to compare.
SKIPPED_STEPS = 10
_MIN_STEPS = SKIPPED_STEPS + 3


@dataclass(frozen=True)
class RangeTest:
    """The loss while the learning rate grows from step to step.

    Attributes:
        subject: model and data set, e.g. `mlp on mnist`.
        lrs: the learning rate of each step, growing.
        losses: the loss after each step, smoothed by Lightning.
        suggested: the learning rate at which the loss falls fastest.
        ended_early: whether the loss grew to four times its lowest before the highest learning rate was reached.
        device: the device of the test.
        finder: Lightning's object, which can plot the loss.
    """

    subject: str
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float
    ended_early: bool
    device: Device
    finder: Any

    def plot(self, path: Path) -> None:
        """Plot the loss over the learning rate and mark the suggestion.

        Raises:
            OSError: the file can't be written.
        """
        import matplotlib

        matplotlib.use("Agg")
        figure = self.finder.plot(suggest=True)
        figure.axes[0].set_title(f"Learning rate range test: {self.suggested:.2g}")
        figure.savefig(path, dpi=150)


def find(config: Config, device: Device, lowest: float, highest: float, num_steps: int) -> RangeTest:
    """Train while the learning rate grows exponentially.

    Args:
        config: the configuration of a run; the optimizer's lr and the scheduler are ignored.
        device: the device to train on.
        lowest, highest: learning rates of the first and the last step.
        num_steps: number of optimizer steps.

    Raises:
        TrainingFailed: the loss never falls.
        UserError: data, model or optimizer can't be built.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks"; the suggestion is Lightning's.
    """
    settings = config.training
    num_microbatches, clip_norm = settings.num_microbatches, settings.gradient_clip_norm
    scales = settings.precision == "16-mixed"
    if scales and clip_norm is not None:
        raise UserError(
            f"training.gradient_clip_norm={clip_norm}: can't be combined with training.precision=16-mixed, which "
            "scales gradients. Leave one of them out."
        )
    by_epochs = replace(settings, max_steps=None, lap_steps=None)  # the test has a number of steps of its own
    data = build_data(replace(config, training=by_epochs), device, Rank())
    data.batch_size = -(-data.batch_size // num_microbatches)
    data.steps_per_execution = 1
    network = build_network(config.model, data.data)
    module = _RangeTestModule(build_module(config, network, device, StopRequest(), {}, Rank(), 1))
    try:
        with quiet_lightning(), _quiet_progress(), tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(device, "16-mixed" if scales else "32-true", num_microbatches, folder)
            finder = Tuner(trainer).lr_find(
                module,
                train_dataloaders=data.train_dataloader(),
                min_lr=lowest,
                max_lr=highest,
                num_training=num_steps,
                update_attr=False,
            )
    except SystemExit as end:  # Lightning turns Ctrl-C into it
        raise KeyboardInterrupt from end
    finally:
        data.teardown("fit")
    assert finder is not None
    suggested = finder.suggestion(skip_begin=SKIPPED_STEPS)
    lrs, losses = finder.results["lr"], finder.results["loss"]
    if suggested is None or len(lrs) < _MIN_STEPS:
        raise TrainingFailed(
            f"the loss became infinite, or too large, after {len(lrs)} of {num_steps} steps, so that no learning rate "
            "can be suggested. Use a smaller --lowest."
        )
    subject = f"{network_name(network)} on {data.data.name}"
    return RangeTest(subject, tuple(lrs), tuple(losses), suggested, len(lrs) < num_steps, device, finder)


def _trainer(
    device: Device, precision: Literal["16-mixed", "32-true"], num_microbatches: int, folder: str
) -> pl.Trainer:
    """Return a Trainer without checkpoints, logs and validation."""
    return pl.Trainer(
        accelerator=XPUAccelerator() if device.used == "xpu" else device.used,
        devices=1,
        plugins=LightningEnvironment(),
        precision=precision,
        accumulate_grad_batches=num_microbatches,
        max_epochs=-1,
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """Show Lightning's progress bar only on a terminal, and hide its advice on data loaders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sys.stderr.isatty():
            yield
        else:
            with redirect_stderr(io.StringIO()):
                yield


class _RangeTestModule(pl.LightningModule):
    """Lets Lightning optimize a module, as its range test requires. Each step group holds one batch."""

    def __init__(self, module: Retrainable) -> None:
        super().__init__()
        self.module = module
        self.network = module.stepper.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.module.make_optimizer(self.network.parameters())

    def on_train_start(self) -> None:
        self.module.stepper.task.start_epoch(self.module.seed)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.module.stepper.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.module.stepper.gradient_clip_norm)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the data loader has moved it

    def training_step(self, step_group: list[Batch], batch_idx: int) -> Tensor:
        ((inputs, targets),) = step_group
        task = self.module.stepper.task
        inputs, mixed_targets, lam = task.mix(inputs, targets)
        with self.module.stepper.autocast():
            return task.training_loss(self.network(inputs), targets, mixed_targets, lam)
