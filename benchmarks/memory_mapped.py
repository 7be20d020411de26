"""Compare batches from memory-mapped files, for data larger than memory, with the same batches from memory.

    python benchmarks/memory_mapped.py                       # MLP on MNIST, and on synthetic color images, 5 rounds
    python benchmarks/memory_mapped.py --plot docs/figures/mapped.svg

The first run of each side, a warm-up, reads the files into the page cache, so the time of the disk is not measured.
Every run is a new process. Goal: at least 0.8 x the throughput.
"""

import argparse

from ratios import Comparison, add_arguments, alternate, in_fresh_process, report, run_laptime

CASES = {
    "MLP on MNIST": ["dataset.limit=30000"],
    "MLP on 3 x 32 x 32 images": ["dataset=synthetic", "dataset.shape=[3,32,32]", "dataset.num_train=20000"],
}


def compare(title: str, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a case, after a warm-up of each side."""
    overrides = [*CASES[title], "training.epochs=4", f"strategy.threads_per_rank={arguments.threads}"]
    sides = {
        pipeline: lambda pipeline=pipeline: in_fresh_process(run_laptime, [*overrides, f"dataset.pipeline={pipeline}"])
        for pipeline in ("memory", "mapped")
    }
    for side in sides.values():
        side()
    return alternate(title, sides, {"mapped": 0.8}, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--threads", default="auto")
    arguments = parser.parse_args()
    report((compare(title, arguments) for title in CASES), "Memory-mapped files against memory", arguments.plot)


if __name__ == "__main__":
    main()
