"""What Lightning and Laptime cost: epochs of a run against the same ones in a bare PyTorch loop, by turns.

    python benchmarks/bare_loop.py                                  # MLP and CNN on MNIST, batch 64, 9 rounds
    python benchmarks/bare_loop.py --models mlp --batch-sizes 32 64 --rounds 15 --plot docs/figures/bare_loop.svg

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
from ratios import Comparison, Measured, add_arguments, draw


def compare(model: str, batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds and print one line."""
    bare, ratios = [], []
    sides: dict[str, list[Measured]] = {"bare loop": [], "Laptime": []}
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
        own = record["timing"]
        sides["Laptime"].append(Measured(own["samples_per_s"]))
        sides["bare loop"].append(Measured(own["samples_per_s"] * own["epoch_time_s"] / bare[-1]))
    print(
        f"{model:6} {batch_size:5}  {statistics.median(bare):7.3f} s  "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )
    title = f"{model.upper()} on MNIST, batch {batch_size}"
    return Comparison(title, sides, of_times=True, ratios={"Laptime": ratios})


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
    print(f"{'model':6} {'batch':>5}  {'bare loop':>9}  ratio (min to max of {arguments.rounds} rounds)")
    comparisons = [
        compare(model, batch_size, arguments) for model in arguments.models for batch_size in arguments.batch_sizes
    ]
    if arguments.plot:
        draw(comparisons, "Laptime's epochs and the same ones in a bare loop", arguments.plot)


if __name__ == "__main__":
    main()
