"""Measure the overhead of everything but computing: Laptime's epochs against the same steps on one ready batch.

    python benchmarks/compute_alone.py                                  # MLP and CNN on MNIST, batches of 64 and 32
    python benchmarks/compute_alone.py --models mlp --rounds 9 --plot docs/figures/compute_alone.svg

The bare steps are forward pass, loss, backward pass, optimizer step and zero_grad, for one epoch, without data,
metrics or framework. They train a copy of Laptime's network with their own optimizer. A round is one run of
Laptime in float32. Between its epochs the bare steps run; which of the two comes first changes from epoch to epoch. The
first of both is a warm-up and not counted. A round's ratio is the median of its pairs. Printed: the median, smallest
and largest round.
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback

from laptime.lap.timed_loader import TimedLoader
from laptime.record.files import read_epochs
from laptime.training import NetworkModule
from ratios import Comparison, Measured, add_arguments, report, run_in_process

GOAL = 1.10
LIMITS = {"mlp": 38_400, "cnn": 6_400}  # number of samples: multiples of the batch sizes, so that all steps are equal


class ComputeAlone(Callback):
    """Times an epoch's steps on one batch: after each odd epoch, before each even one. Epoch 0 is the warm-up.

    Attributes:
        times: seconds of the counted repetitions of the latest run.
    """

    times: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch == 0:
            self._compute(trainer, pl_module)
            ComputeAlone.times = []
        elif epoch % 2 == 0:
            for _ in range(2):  # one belongs to the previous epoch, one to this epoch
                ComputeAlone.times.append(self._compute(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(self.times) < trainer.current_epoch - 1:
            ComputeAlone.times.append(self._compute(trainer, pl_module))

    def _compute(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        loader = trainer.train_dataloader
        assert isinstance(module, NetworkModule) and isinstance(loader, TimedLoader)
        images, labels = (tensor.clone() for tensor in next(iter(loader.pipeline.batches())))
        assert len(loader.sampler) % len(labels) == 0
        network = copy.deepcopy(module.network).train()
        optimizer = module.make_optimizer(network.parameters())
        start = 0.0
        for step in range(1 + len(loader.sampler) // len(labels)):
            if step == 1:  # step 0 creates the optimizer's state
                start = time.perf_counter()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        assert torch.isfinite(loss)
        return seconds


def compare(model: str, batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a network and a batch size."""
    num_samples = arguments.limit or LIMITS[model]
    sides: dict[str, list[Measured]] = {"compute alone": [], "Laptime": []}
    ratios = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            run_in_process(
                Path(folder), f"model={model}", f"training.batch_size={batch_size}", "dataset.val_fraction=0",
                f"training.epochs={arguments.epochs + 1}", f"dataset.limit={num_samples}", "logger=none",
                "scheduler=none", "callbacks.checkpoint=null", f"strategy.threads_per_rank={arguments.threads}",
                f"+callbacks.compute_alone._target_={__name__}.ComputeAlone",
                f"security.allowed_targets=[{__name__}]",
            )  # fmt: skip
            laptime_s = list(read_epochs(Path(folder) / "run")["epoch_time_s"])[1:]
        compute_s = ComputeAlone.times
        ratios.append(statistics.median(epoch / bare for epoch, bare in zip(laptime_s, compute_s, strict=True)))
        for side, times in zip(sides, (compute_s, laptime_s), strict=True):
            sides[side].append(Measured(num_samples / statistics.median(times)))
    title = f"{model.upper()} on MNIST, batch {batch_size}"
    return Comparison(title, sides, {"Laptime": GOAL}, of_times=True, ratios={"Laptime": ratios})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 32])
    parser.add_argument("--epochs", type=int, default=4, help="counted epochs per round")
    parser.add_argument("--limit", type=int, help="training samples; 38,400 (mlp) and 6,400 (cnn)")
    parser.add_argument("--threads", default="auto")
    arguments = parser.parse_args()
    for model in arguments.models:
        if any((arguments.limit or LIMITS[model]) % size for size in arguments.batch_sizes):
            parser.error("--limit: must be a multiple of every batch size, so that all steps are equal")
    logging.disable(logging.INFO)
    comparisons = (
        compare(model, batch_size, arguments) for model in arguments.models for batch_size in arguments.batch_sizes
    )
    report(comparisons, "Laptime's epochs and their compute alone", arguments.plot)


if __name__ == "__main__":
    main()
