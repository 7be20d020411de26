"""What two ranks on one machine could reach at most: plain steps, and a meeting in each of them that costs nothing.

    python benchmarks/rendezvous.py                       # an MLP of MNIST's size, 64 and 256 samples per process
    python benchmarks/rendezvous.py --batch-sizes 64 --rounds 15 --plot meeting.svg

Two processes with a core and a thread each take the steps of an MLP with Adam on numbers that lie ready: no data, no
framework, no gradient is sent. By turns one process works alone, both work at their own pace, and both wait for each
other in every step, looking at the other's counter without sleeping. What is lost to two at their own pace is lost to
shared memory and caches; what a meeting loses besides is that the slower one of the two sets the pace of every single
step. No way of averaging gradients can do better. 2 x one process is an efficiency of 1.
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

ALONE, APART, MEETING = "1 process", "2, at their own pace", "2, meeting in each step"
SIDES = (ALONE, APART, MEETING)


def work(place: int, batch_size: int, rounds: int, steps: int, start: Barrier, counters: Any, results: Any) -> None:
    """One of the processes; `results` gets its seconds by side and round."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[place]])
    torch.set_num_threads(1)
    torch.manual_seed(place)
    network = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4, fused=True)
    images, labels = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))

    def step(meets: bool) -> None:
        F.cross_entropy(network(images), labels).backward()
        if meets:
            counters[place] += 1
            while counters[1 - place] < counters[place]:
                pass
        optimizer.step()
        optimizer.zero_grad()

    for number in range(rounds):
        for side in reversed(SIDES) if number % 2 else SIDES:
            works = side != ALONE or place == 0
            start.wait()
            for _ in range(steps // 10 * works):  # caches still hold what the side before left there
                step(side == MEETING)
            start.wait()
            before = time.perf_counter()
            for _ in range(steps * works):
                step(side == MEETING)
            if works:
                results.put((side, number, time.perf_counter() - before))


def compare(batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a batch size."""
    context = mp.get_context("spawn")
    start, counters, results = context.Barrier(2), context.RawArray("q", 2), context.Queue()
    processes = [
        context.Process(
            target=work, args=(place, batch_size, arguments.rounds, arguments.steps, start, counters, results)
        )
        for place in range(2)
    ]
    for process in processes:
        process.start()
    found: dict[str, list[list[float]]] = {side: [[] for _ in range(arguments.rounds)] for side in SIDES}
    for _ in range(arguments.rounds * 5):
        side, number, seconds = results.get(timeout=600)
        found[side][number].append(seconds)
    for process in processes:
        process.join()

    def measured(of_rounds: Sequence[list[float]]) -> list[Measured]:
        return [Measured(len(times) * arguments.steps * batch_size / max(times)) for times in of_rounds]

    return Comparison(
        f"Steps of an MLP, {batch_size} samples per process", {side: measured(found[side]) for side in SIDES}
    )


def main() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("needs two cores: each process has one of its own")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--steps", type=int, default=200, help="counted steps per round and side")
    arguments = parser.parse_args()
    comparisons = (compare(batch_size, arguments) for batch_size in arguments.batch_sizes)
    report(comparisons, "Two processes that only wait for each other", arguments.plot)


if __name__ == "__main__":
    main()
