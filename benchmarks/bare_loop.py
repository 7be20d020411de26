"""Measure the overhead of Lightning and Laptime: alternate epochs of a run and of a bare PyTorch loop.

    python benchmarks/bare_loop.py                                  # MLP and CNN on MNIST, batch 64, 9 rounds
    python benchmarks/bare_loop.py --models mlp --batch-sizes 32 64 --rounds 15 --plot docs/figures/bare_loop.svg

Each round is a run with `measure.bare_loop=true`. Both sides have the same network, batches, optimizer, metrics and
losses. Their epochs alternate, and the first epoch of each is not counted. Printed: the median throughput of both
sides, and the ratio of epoch times as median, smallest and largest round.
"""

import argparse
import logging
import tempfile
from pathlib import Path

from ratios import Comparison, Measured, add_arguments, report, run_in_process

GOALS = {("mlp", 64): 1.03, ("cnn", 64): 1.02, ("mlp", 32): 1.10, ("cnn", 32): 1.10}


def compare(model: str, batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds."""
    ratios = []
    sides: dict[str, list[Measured]] = {"bare loop": [], "Laptime": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            record = run_in_process(
                Path(folder), f"model={model}", f"training.batch_size={batch_size}", "dataset.val_fraction=0",
                f"training.epochs={arguments.epochs + 1}", f"dataset.limit={arguments.limit}", "logger=none",
                "measure.bare_loop=true", f"strategy.threads_per_rank={arguments.threads}",
            )  # fmt: skip
        ratios.append(1 + record["bare_loop"]["overhead"])
        timing = record["timing"]
        sides["Laptime"].append(Measured(timing["samples_per_s"]))
        num_samples = timing["samples_per_s"] * timing["epoch_time_s"]
        sides["bare loop"].append(Measured(num_samples / record["bare_loop"]["epoch_time_s"]))
    goals = {"Laptime": GOALS[model, batch_size]} if (model, batch_size) in GOALS else {}
    title = f"{model.upper()} on MNIST, batch {batch_size}"
    return Comparison(title, sides, goals, of_times=True, ratios={"Laptime": ratios})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64])
    add_arguments(parser, rounds=9)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs per round")
    parser.add_argument("--limit", type=int, default=20_000, help="training samples")
    parser.add_argument("--threads", default="auto")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    comparisons = (
        compare(model, batch_size, arguments) for model in arguments.models for batch_size in arguments.batch_sizes
    )
    report(comparisons, "Epochs in Laptime and in a bare loop", arguments.plot)


if __name__ == "__main__":
    main()
