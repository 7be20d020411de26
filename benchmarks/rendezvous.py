"""Measure the upper bound of two ranks on one machine: training steps whose rendezvous costs nothing.

    python benchmarks/rendezvous.py                       # an MLP of MNIST's size, 64 and 256 samples per process
    python benchmarks/rendezvous.py --batch-sizes 64 --rounds 15 --plot rendezvous.svg

Two processes, each with one core and one thread, train an MLP with Adam on ready numbers, without data loading, without
a framework and without sending gradients. Three sides alternate: one process works alone; both work independently; both
wait for each other in every step, by polling the other's counter. Two independent processes lose time only to shared
memory and caches. With a rendezvous, the slower of the two also sets the pace of every step. No way of averaging
gradients can be faster. 2 x one process is an efficiency of 1.
"""

import argparse
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ratios import Comparison, Measured, add_arguments, report

ALONE, INDEPENDENT, RENDEZVOUS = "1 process", "2, independent", "2, rendezvous in each step"
SIDES = (ALONE, INDEPENDENT, RENDEZVOUS)


def work(index: int, batch_size: int, rounds: int, steps: int, start: Barrier, counters: Any, results: Any) -> None:
    """Train in one of the two processes, and put (side, round, seconds) into `results`."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[index]])
    torch.set_num_threads(1)
    torch.manual_seed(index)
    network = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4, fused=True)
    images, labels = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))

    def step(waits: bool) -> None:
        F.cross_entropy(network(images), labels).backward()
        if waits:
            counters[index] += 1
            while counters[1 - index] < counters[index]:
                pass
        optimizer.step()
        optimizer.zero_grad()

    for number in range(rounds):
        for side in reversed(SIDES) if number % 2 else SIDES:
            works = side != ALONE or index == 0
            start.wait()
            for _ in range(steps // 10 * works):  # warm-up: the caches hold the data of the previous side
                step(side == RENDEZVOUS)
            start.wait()
            started_at = time.perf_counter()
            for _ in range(steps * works):
                step(side == RENDEZVOUS)
            if works:
                results.put((side, number, time.perf_counter() - started_at))


def compare(batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a batch size."""
    context = mp.get_context("spawn")
    start, counters, results = context.Barrier(2), context.RawArray("q", 2), context.Queue()
    processes = [
        context.Process(
            target=work, args=(index, batch_size, arguments.rounds, arguments.steps, start, counters, results)
        )
        for index in range(2)
    ]
    for process in processes:
        process.start()
    times_s: dict[str, list[list[float]]] = {side: [[] for _ in range(arguments.rounds)] for side in SIDES}
    for _ in range(arguments.rounds * 5):
        side, number, seconds = results.get(timeout=600)
        times_s[side][number].append(seconds)
    for process in processes:
        process.join()

    def measured(rounds: Sequence[list[float]]) -> list[Measured]:
        return [Measured(len(times) * arguments.steps * batch_size / max(times)) for times in rounds]

    return Comparison(
        f"Steps of an MLP, {batch_size} samples per process", {side: measured(times_s[side]) for side in SIDES}
    )


def main() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("error: needs two cores, one for each process")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--steps", type=int, default=200, help="counted steps per round and side")
    arguments = parser.parse_args()
    comparisons = (compare(batch_size, arguments) for batch_size in arguments.batch_sizes)
    report(comparisons, "Two processes that only wait for each other", arguments.plot)


if __name__ == "__main__":
    main()
