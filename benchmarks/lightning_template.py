"""Compare Laptime with a typical Lightning project, as lightning-hydra-template makes them: an MLP on MNIST.

    python benchmarks/lightning_template.py                                    # both cases
    python benchmarks/lightning_template.py --cases usual --rounds 9 --plot docs/figures/lightning_template.svg

The template side: a LightningModule with torchmetrics' Accuracy and MeanMetric that are logged in every step and shown
by the progress bar, a DataLoader over PIL images with torchvision's transforms, plain Adam. The template itself
(github.com/ashleve/lightning-hydra-template, version of September 2023) loads in the training process (num_workers=0),
shows only epoch means (on_step=False), draws Rich's bar and has no logger unless one is named. It never sets
persistent_workers. So there are two cases:

    usual      two workers, persistent_workers=False (the default), on_step=True, Lightning's TQDM bar, CSVLogger
    published  num_workers=0, on_step=False, Rich's bar, no logger

Laptime has the same network, samples, batch size, threads and settings of Adam, its own progress bar and, in the first
case, its CSV logger. The bars are drawn to /dev/null. The timed epochs contain no validation and no checkpoint. The
template's epochs last from on_train_epoch_start to on_train_epoch_end, Laptime's as in epochs.csv. Each round runs both
sides in new processes. The first epoch of each is a warm-up and not counted.
"""

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import Accuracy

from ratios import (
    Comparison,
    Measured,
    add_arguments,
    add_epoch_arguments,
    alternate,
    in_fresh_process,
    report,
    require_learning,
    run_laptime,
)
from replaced_script import LEARNING_RATE, WEIGHT_DECAY, network_and_images

OVERRIDES = ("model=mlp", "dataset=mnist")
GOALS = {"usual": {"Laptime": 4.0}, "published": {}}


class LitClassifier(pl.LightningModule):
    """Images (B, 1, 28, 28) into ten classes.

    Args:
        network: computes the logits.
        on_step: whether to log every step, not only the mean of the epoch.
    """

    def __init__(self, network: nn.Module, on_step: bool) -> None:
        super().__init__()
        self.network = network
        self.on_step = on_step
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc = Accuracy(task="multiclass", num_classes=10)
        self.train_loss = MeanMetric()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, targets = batch
        logits = self.network(images)
        loss: torch.Tensor = self.criterion(logits, targets)
        self.train_loss(loss)
        self.train_acc(torch.argmax(logits, dim=1), targets)
        self.log("train/loss", self.train_loss, on_step=self.on_step, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=self.on_step, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


class Clock(Callback):
    """Times every epoch, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter() - self.start)


def run_template(case: str, arguments: argparse.Namespace) -> Measured:
    """Train as the template does."""
    usual = case == "usual"
    torch.set_num_threads(arguments.threads)
    pl.seed_everything(1)
    network, dataset = network_and_images(OVERRIDES, arguments.limit)
    loader = DataLoader(
        dataset, batch_size=arguments.batch_size, num_workers=2 if usual else 0, pin_memory=False, shuffle=True
    )
    clock, bar = Clock(), TQDMProgressBar() if usual else RichProgressBar()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            min_epochs=1,
            max_epochs=arguments.epochs + 1,
            callbacks=[clock, bar],
            logger=CSVLogger(folder) if usual else False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(LitClassifier(network, on_step=usual), loader)
    loss = float(trainer.callback_metrics["train/loss_epoch" if usual else "train/loss"])
    return require_learning(Measured(len(dataset) / statistics.median(clock.times[1:]), loss))


def run_laptime_with_bar(overrides: list[str]) -> Measured:
    """Run Laptime as on a terminal, so that it draws its progress bar."""
    os.environ["FORCE_COLOR"] = "1"  # Rich then treats any stream as a terminal
    return run_laptime(overrides)


def compare(case: str, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a case."""
    overrides = [
        *OVERRIDES, f"dataset.limit={arguments.limit}", f"training.epochs={arguments.epochs + 1}",
        f"training.batch_size={arguments.batch_size}", f"strategy.threads_per_rank={arguments.threads}",
        "callbacks.checkpoint=null", f"logger={'csv' if case == 'usual' else 'none'}",
    ]  # fmt: skip
    sides = {
        "Lightning template": lambda: in_fresh_process(run_template, case, arguments),
        "Laptime": lambda: in_fresh_process(run_laptime_with_bar, overrides),
    }
    settings = "two workers, steps logged" if case == "usual" else "as published: no workers, epochs logged"
    return alternate(f"MLP on MNIST, batch {arguments.batch_size}; {settings}", sides, GOALS[case], arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--cases", nargs="+", choices=GOALS, default=list(GOALS))
    add_epoch_arguments(parser, 60_000, "training samples")
    arguments = parser.parse_args()
    comparisons = (compare(case, arguments) for case in arguments.cases)
    report(comparisons, "Laptime and a typical Lightning project", arguments.plot)


if __name__ == "__main__":
    main()
