"""Evaluating 10,000 MNIST images: a run's own validation against one forward pass over them in big batches.

    python benchmarks/evaluation.py                        # MLP and CNN, 9 rounds
    python benchmarks/evaluation.py --models mlp --rounds 21

Both sides use the same trained network on the same images. The run's side is what `trainer.test` does, from start to
end: batches of `training.eval_batch_size`, normalised from pixels, losses and hits summed. The other side is the
network alone, on floats that are ready, in batches of 1,000 and nothing more. Printed: medians in milliseconds and the
ratio, with its smallest and largest round. Goal: at most 2.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import laptime
from laptime import training


def bare_s(module: Any, batches: list[torch.Tensor]) -> float:
    """Seconds of the network alone."""
    network = module.network.eval()
    with torch.inference_mode():
        before = time.perf_counter()
        for images in batches:
            network(images)
        return time.perf_counter() - before


def compare(model: str, rounds: int, threads: str) -> None:
    """Patch the run's test, so that it is taken many times, in turn with the network alone."""
    own: list[float] = []
    bare: list[float] = []
    real = pl.Trainer.test

    def test(trainer: pl.Trainer, module: Any, datamodule: Any, **rest: Any) -> Any:
        batches = [images.clone() for images, _ in datamodule.test_dataloader()]
        for number in range(rounds + 1):
            sides = [lambda: own.append(timed(trainer)), lambda: bare.append(bare_s(module, batches))]
            for side in sides[:: 1 if number % 2 else -1]:
                side()
        return real(trainer, module, datamodule=datamodule, **rest)

    def timed(trainer: pl.Trainer) -> float:
        module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
        before = time.perf_counter()
        real(trainer, module, datamodule=data, verbose=False)
        return time.perf_counter() - before

    training.pl.Trainer.test = test  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            laptime.run(
                [f"model={model}", "training.epochs=1", "dataset.val_fraction=0", "device=cpu", "logger=none",
                 "measure.breakdown=false", "measure.peak=false", "callbacks.progress_bar=null",
                 f"strategy.threads_per_rank={threads}",
                 *(["dataset.limit=10000"] if model == "cnn" else []), f"hydra.run.dir={Path(folder) / 'run'}"]
            )  # fmt: skip
    finally:
        training.pl.Trainer.test = real  # type: ignore[method-assign]
    ratios = [mine / alone for mine, alone in zip(own[1:], bare[1:], strict=True)]  # the first of each is a warm-up
    print(
        f"{model:6} {1e3 * statistics.median(bare[1:]):9.1f} ms {1e3 * statistics.median(own[1:]):9.1f} ms  "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", default="auto")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print(f"{'model':6} {'network':>12} {'the run':>12}  ratio (min to max of {arguments.rounds} rounds)")
    for model in arguments.models:
        compare(model, arguments.rounds, arguments.threads)


if __name__ == "__main__":
    main()
