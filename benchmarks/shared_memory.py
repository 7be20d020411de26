"""Compare two ranks that average gradients in shared memory, two that average over gloo, and one rank, alternately.

    python benchmarks/shared_memory.py                                  # MLP on MNIST, 64 and 256 samples per rank
    python benchmarks/shared_memory.py --batch-sizes 64 --rounds 9 --plot docs/figures/shared_memory.svg
    python benchmarks/shared_memory.py --world-size 4 --batch-sizes 64  # more ranks than cores, each with a thread

A round is a sweep, `python train.py -m strategy.world_size=1,2 strategy.comm_hook=none,shared_memory`, with one thread
per rank. Its order is reversed from round to round. Every rank is a new process on its own core. Printed: the samples
per second of all ranks together; the throughput relative to gloo (goal: 1.7 x with 2 ranks at 64) and to one rank (2 x
is an efficiency of 1; goals: 1.6 x at 64 and 1.9 x at 256); and the times of a step from the breakdown.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

from ratios import Comparison, Measured, add_arguments, report, require_learning, run_in_subprocess

ONE, GLOO, SHARED = "1 rank", "over gloo", "shared memory"
AGAINST_GLOO = {64: 1.7}
EFFICIENCY = {64: 0.80, 256: 0.95}


def sweep(batch_size: int, world_size: int, arguments: argparse.Namespace, is_reversed: bool) -> list[dict[str, Any]]:
    """The records of one round's runs."""
    sizes, hooks = (1, world_size), ("none", "shared_memory")
    if is_reversed:
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
    """Run all rounds. After both comparisons, print the times of a step."""
    world_size = arguments.world_size
    sides: dict[str, list[Measured]] = {ONE: [], GLOO: [], SHARED: []}
    steps: dict[str, list[dict[str, float]]] = {GLOO: [], SHARED: []}
    for number in range(arguments.rounds):
        by_side: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for record in sweep(batch_size, world_size, arguments, bool(number % 2)):
            by_side[side_of(record)].append(record)
        for side, records in by_side.items():
            speed = statistics.median(record["timing"]["samples_per_s"] for record in records)
            sides[side].append(require_learning(Measured(speed, records[0]["result"]["train_loss"])))
        for side in steps:
            steps[side].append(by_side[side][0]["communication"] | by_side[side][0]["contention"])
    title = f"MLP on MNIST, {batch_size} samples per rank, {world_size} ranks with a thread each"
    has_goals = world_size == 2
    yield Comparison(
        f"{title}: against gloo",
        {side: sides[side] for side in (GLOO, SHARED)},
        {SHARED: AGAINST_GLOO[batch_size]} if has_goals and batch_size in AGAINST_GLOO else {},
    )
    yield Comparison(
        f"{title}: against one rank",
        sides,
        {SHARED: 2 * EFFICIENCY[batch_size]} if has_goals and batch_size in EFFICIENCY else {},
    )
    for side, rounds in steps.items():
        times_ms = {key: 1e3 * statistics.median(step[key] for step in rounds) for key in LABELS}
        texts = (f"{label} {times_ms[key]:.2f}" for key, label in LABELS.items())
        print(f"  {side}, ms per step: {', '.join(texts)}", flush=True)


LABELS = {
    "step_s": "total",
    "no_sync_step_s": "without synchronization",
    "exposed_s": "exposed averaging",
    "isolated_all_reduce_s": "isolated all-reduce",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256], help="per rank")
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs per run")
    parser.add_argument("--limit", type=int, default=24_000, help="training samples")
    arguments = parser.parse_args()
    comparisons = itertools.chain.from_iterable(compare(batch_size, arguments) for batch_size in arguments.batch_sizes)
    report(comparisons, "Ranks on one machine: shared memory against gloo", arguments.plot)


if __name__ == "__main__":
    main()
