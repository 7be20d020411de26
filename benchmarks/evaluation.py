"""Evaluate 10,000 MNIST images: the test of a run against a forward pass of its network in large batches.

    python benchmarks/evaluation.py                        # MLP and CNN, 9 rounds
    python benchmarks/evaluation.py --models mlp --rounds 21

Both sides use the same trained network and the same images. The run's side is the whole of `trainer.test`: batches of
`training.eval_batch_size`, normalized from pixels, with sums of losses and of correct answers. The other side is only
the network, on ready floats in batches of 1,000. Printed: the median throughput, and the ratio of times as median,
smallest and largest round. Goal: at most 2.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ratios import Comparison, Measured, add_arguments, report, run_in_process


def bare_s(module: Any, batches: list[torch.Tensor]) -> float:
    """Seconds of the network alone."""
    network = module.network.eval()
    with torch.inference_mode():
        start = time.perf_counter()
        for images in batches:
            network(images)
        return time.perf_counter() - start


def compare(model: str, arguments: argparse.Namespace) -> Comparison:
    """Patch the Trainer so that the run's test is repeated, alternating with the network alone."""
    sides: dict[str, list[Measured]] = {"network alone": [], "the run's test": []}
    real = pl.Trainer.test

    def test(trainer: pl.Trainer, module: Any, datamodule: Any, **keywords: Any) -> Any:
        batches = [images.clone() for images, _ in datamodule.test_dataloader()]

        def trainer_s() -> float:
            start = time.perf_counter()
            real(trainer, module, datamodule=datamodule, verbose=False)
            return time.perf_counter() - start

        seconds = {"network alone": lambda: bare_s(module, batches), "the run's test": trainer_s}
        for number in range(arguments.rounds + 1):
            for side in reversed(seconds) if number % 2 else seconds:
                sides[side].append(Measured(datamodule.num_test / seconds[side]()))
        return real(trainer, module, datamodule=datamodule, **keywords)

    pl.Trainer.test = test  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_in_process(
                Path(folder), f"model={model}", "training.epochs=1", "dataset.val_fraction=0", "logger=none",
                "callbacks.progress_bar=null", f"strategy.threads_per_rank={arguments.threads}",
                *(["dataset.limit=10000"] if model == "cnn" else []),
            )  # fmt: skip
    finally:
        pl.Trainer.test = real  # type: ignore[method-assign]
    counted = {side: rounds[1:] for side, rounds in sides.items()}  # the first of each is a warm-up
    return Comparison(f"{model.upper()}, 10,000 MNIST images", counted, {"the run's test": 2}, of_times=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    add_arguments(parser, rounds=9)
    parser.add_argument("--threads", default="auto")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    comparisons = (compare(model, arguments) for model in arguments.models)
    report(comparisons, "Evaluation and the network alone", arguments.plot)


if __name__ == "__main__":
    main()
