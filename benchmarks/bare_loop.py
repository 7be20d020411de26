"""What Lightning and Laptime cost: epochs of a run against the same ones in a bare PyTorch loop, by turns.

    python benchmarks/bare_loop.py                                  # MLP and CNN on MNIST, batch 64, 9 rounds
    python benchmarks/bare_loop.py --models mlp --batch-sizes 32 64 --rounds 15

Each round is a run with `measure.bare_loop=true`: the same network, batches, optimizer, metrics and losses on both
sides, one epoch of each in turn, the first of both uncounted. Printed: the medians over the rounds of the bare loop's
epoch time and of the ratio to it, with its smallest and largest round.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
from pathlib import Path

import laptime


def compare(model: str, batch_size: int, arguments: argparse.Namespace) -> None:
    """Run all rounds and print one line."""
    bare, ratios = [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            record = laptime.run(
                [
                    f"model={model}", f"training.batch_size={batch_size}", f"training.epochs={arguments.epochs + 1}",
                    f"dataset.limit={arguments.limit}", "dataset.val_fraction=0", "device=cpu", "logger=none",
                    "measure.bare_loop=true", "measure.breakdown=false", "measure.peak=false",
                    f"strategy.threads_per_rank={arguments.threads}", f"hydra.run.dir={Path(folder) / 'run'}",
                ]
            )  # fmt: skip
        bare.append(record["bare_loop"]["epoch_time_s"])
        ratios.append(1 + record["bare_loop"]["overhead"])
    print(
        f"{model:6} {batch_size:5}  {statistics.median(bare):7.3f} s  "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs per round")
    parser.add_argument("--limit", type=int, default=20_000, help="training samples")
    parser.add_argument("--threads", default="auto")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print(f"{'model':6} {'batch':>5}  {'bare loop':>9}  ratio (min to max of {arguments.rounds} rounds)")
    for model in arguments.models:
        for batch_size in arguments.batch_sizes:
            compare(model, batch_size, arguments)


if __name__ == "__main__":
    main()
