"""Two ranks on one machine: gradients averaged in shared memory, over gloo, and one rank alone, by turns.

    python benchmarks/shared_memory.py                                  # MLP on MNIST, 64 and 256 samples per rank
    python benchmarks/shared_memory.py --batch-sizes 64 --rounds 9 --plot docs/figures/shared_memory.svg
    python benchmarks/shared_memory.py --world-size 4 --batch-sizes 64  # more ranks than cores, each with a thread

A round is a sweep, `python train.py -m strategy.world_size=1,2 strategy.comm_hook=none,shared_memory` with one thread
per rank, its order turned round from one to the next; every rank is a fresh process on a core of its own. Printed:
samples per second of all ranks together, the throughput against gloo's (goal: 1.7 x with 2 ranks at 64) and against
that of one rank (2 x is an efficiency of 1; goals: 1.6 x at 64 and 1.9 x at 256), and what the breakdown says of a
step.
"""

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from ratios import Comparison, Measured, add_arguments, report, require_learning, run_in_subprocess

ONE, GLOO, SHARED = "1 rank", "over gloo", "shared memory"
AGAINST_GLOO = {64: 1.7}
EFFICIENCY = {64: 0.80, 256: 0.95}


def sweep(batch_size: int, world_size: int, arguments: argparse.Namespace, is_turned: bool) -> list[dict[str, Any]]:
    """The records of one round's runs."""
    sizes, hooks = (1, world_size), ("none", "shared_memory")
    if is_turned:
        sizes, hooks = sizes[::-1], hooks[::-1]
    return run_in_subprocess(
        "-m", f"strategy.world_size={','.join(map(str, sizes))}", f"strategy.comm_hook={','.join(hooks)}",
        "strategy.threads_per_rank=1", f"training.batch_size={batch_size}", f"training.epochs={arguments.epochs + 1}",
        f"dataset.limit={arguments.limit}", "dataset.val_fraction=0", "measure.peak=false",
    )  # fmt: skip


def side_of(record: dict[str, Any]) -> str:
    if record["strategy"]["world_size"] == 1:
        return ONE
    return SHARED if record["config"]["strategy"]["comm_hook"] == "shared_memory" else GLOO


def compare(batch_size: int, arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Run all rounds, and say after both comparisons what a step consists of."""
    world_size = arguments.world_size
    sides: dict[str, list[Measured]] = {ONE: [], GLOO: [], SHARED: []}
    steps: dict[str, list[dict[str, float]]] = {GLOO: [], SHARED: []}
    for number in range(arguments.rounds):
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for record in sweep(batch_size, world_size, arguments, bool(number % 2)):
            found[side_of(record)].append(record)
        for side, records in found.items():
            speed = statistics.median(each["timing"]["samples_per_s"] for each in records)
            sides[side].append(require_learning(Measured(speed, records[0]["result"]["train_loss"])))
        for side in steps:
            steps[side].append(found[side][0]["communication"] | found[side][0]["contention"])
    title = f"MLP on MNIST, {batch_size} samples per rank, {world_size} ranks with a thread each"
    counts = world_size == 2
    yield Comparison(
        f"{title}: against gloo",
        {side: sides[side] for side in (GLOO, SHARED)},
        {SHARED: AGAINST_GLOO[batch_size]} if counts and batch_size in AGAINST_GLOO else {},
    )
    yield Comparison(
        f"{title}: against one rank",
        sides,
        {SHARED: 2 * EFFICIENCY[batch_size]} if counts and batch_size in EFFICIENCY else {},
    )
    for side, found_steps in steps.items():
        of = {key: 1e3 * statistics.median(each[key] for each in found_steps) for key in WORDS}
        print(f"  {side}, ms a step: " + ", ".join(f"{word} {of[key]:.2f}" for key, word in WORDS.items()), flush=True)


WORDS = {
    "step_s": "all",
    "no_sync_step_s": "without synchronisation",
    "exposed_s": "averaging",
    "isolated_all_reduce_s": "averaging alone",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256], help="per rank")
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs per run")
    parser.add_argument("--limit", type=int, default=24_000, help="training samples")
    arguments = parser.parse_args()
    comparisons = (each for batch_size in arguments.batch_sizes for each in compare(batch_size, arguments))
    report(comparisons, "Ranks on one machine: shared memory against gloo", arguments.plot)


if __name__ == "__main__":
    main()
