"""Does anything grow that shouldn't: time with the samples, memory with the epochs, runs with the sweep, logs with the
steps?

    python benchmarks/growth.py                                  # all parts, about 15 minutes
    python benchmarks/growth.py --parts sweep --runs 100
    python benchmarks/growth.py --parts samples memory --samples 5000 --rounds 3

`samples`: epochs of N, 2N and 4N made-up images, by turns. `memory`: resident memory at the end of each of 100 epochs;
its slope is by least squares from epoch 10 on. The allocator keeps what tensors gave back, in steps of one or two MB;
`mmap` is the same run with an allocator that keeps nothing, so what grows there is what Laptime and Lightning keep.
`sweep`: a sweep of many short runs, its launcher looked at from outside. `logs`: what everything that writes takes of
an epoch of 100,000 steps, TensorBoard's thread included, checkpoints left out. Every line ends with its goal.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.summary.writer.record_writer import RecordWriter

from laptime.lap import epoch_recorder
from laptime.lap.epoch_timer import EpochTimer
from laptime.record.files import parse_timestamp, read_epochs
from laptime.record.run_record import RunRecord
from ratios import SHORT, TRAIN, run_in_process


def say(what: str, met: bool, goal: str) -> None:
    print(f"{what}; goal: {goal}: {'met' if met else 'MISSED'}", flush=True)


def samples(arguments: argparse.Namespace) -> None:
    """Seconds per sample with N, 2N and 4N of them."""
    sizes = [arguments.samples, 2 * arguments.samples, 4 * arguments.samples]
    per_thousand: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(arguments.rounds):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            with tempfile.TemporaryDirectory() as folder:
                record = run_in_process(
                    Path(folder), "dataset=synthetic", f"dataset.num_train={size}", "dataset.num_test=1000",
                    "dataset.val_fraction=0", "training.epochs=4", "logger=none", "callbacks.checkpoint=null",
                    f"strategy.threads_per_rank={arguments.threads}",
                )  # fmt: skip
            per_thousand[size].append(1000 * record["timing"]["epoch_time_s"] / size)
    smallest = per_thousand[sizes[0]]
    for size in sizes[1:]:
        ratios = [each / first for each, first in zip(per_thousand[size], smallest, strict=True)]
        ratio = statistics.median(ratios)
        say(
            f"samples: {statistics.median(per_thousand[size]):.4f} s per 1,000 of {size:,} samples, {ratio:.3f} x that "
            f"of {sizes[0]:,} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds)",
            abs(ratio - 1) <= 0.1,
            "0.9 to 1.1",
        )


def memory(arguments: argparse.Namespace) -> None:
    """Resident memory of a rank over the epochs; of several, the one that grows most."""
    keeps_nothing = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    variants: dict[str, tuple[list[str], dict[str, str]]] = {
        "one rank": (["logger=none"], {}),
        "one rank, mmap": (["logger=none"], keeps_nothing),
        "one rank, TensorBoard, mmap": (["logger=tensorboard"], keeps_nothing),
        "two ranks, shared memory, mmap": (
            ["logger=none", "strategy.world_size=2", "strategy.comm_hook=shared_memory"],
            keeps_nothing,
        ),
    }
    for name, (overrides, environment) in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [
                    sys.executable, str(TRAIN), *SHORT, *overrides, f"training.epochs={arguments.epochs}",
                    "dataset.limit=2000", "strategy.threads_per_rank=1", f"hydra.run.dir={Path(folder) / 'run'}",
                ],
                cwd=folder, env=os.environ | environment, capture_output=True, check=True,
            )  # fmt: skip
            epochs = read_epochs(Path(folder) / "run")
        by_rank = [rank["rss_bytes"].to_numpy() for _, rank in epochs.groupby("rank")]
        slopes = [slope(rank[10:]) / 1e3 for rank in by_rank]
        most = int(np.argmax(slopes))
        say(
            f"memory, {name}: {by_rank[most][10] / 1e6:.1f} MB at epoch 10, {by_rank[most][-1] / 1e6:.1f} at "
            f"{arguments.epochs}, {slopes[most]:.1f} kB per epoch",
            slopes[most] < 20,
            "below 20 kB",
        )


def slope(values: Sequence[float]) -> float:
    """By least squares, per step."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def sweep(arguments: argparse.Namespace) -> None:
    """Early runs of one sweep against late ones, and what its launcher takes meanwhile."""
    typed = [f"seed=range(0,{arguments.runs})", "dataset.limit=500", "training.epochs=1", "strategy.threads_per_rank=1"]
    with tempfile.TemporaryDirectory() as folder:
        started_at = time.time()
        launcher = psutil.Popen(
            [sys.executable, str(TRAIN), "-m", *SHORT, *typed, "hydra.sweep.dir=sweep"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        looks = []
        while launcher.poll() is None:
            with contextlib.suppress(psutil.Error):
                look = (launcher.memory_info().rss, launcher.num_fds(), launcher.num_threads())
                looks.append((time.time(), *look))
            time.sleep(0.1)
        paths = sorted(Path(folder, "sweep").glob("*/run.json"), key=lambda path: int(path.parent.name))
        ended = [parse_timestamp(json.loads(path.read_text())["ended_at"]) for path in paths]
        before = parse_timestamp(json.loads(paths[0].read_text())["started_at"]) - started_at
    if launcher.returncode != 0 or len(ended) != arguments.runs:
        sys.exit(f"sweep: {len(ended)} runs of {arguments.runs}, exit code {launcher.returncode}")
    num = min(30, arguments.runs // 3)
    early, late = range(min(10, num), min(10, num) + num), range(arguments.runs - num, arguments.runs)
    times = np.diff([ended[0], *ended])
    first, last = np.median(times[list(early)]), np.median(times[list(late)])

    def most(number: int, column: int) -> int:
        """The largest value while a run was under way."""
        return max(look[column] for look in looks if ended[number - 1] < look[0] <= ended[number])

    span = f"runs {early.start} to {early.stop - 1} against the last {num}"
    say(
        f"sweep: {first:.2f} s a run, then {last:.2f}, {last / first:.3f} x ({span})",
        0.9 <= last / first <= 1.1,
        "0.9 to 1.1",
    )
    rss = [most(number, 1) for number in range(early.start, arguments.runs)]
    say(
        f"sweep's launcher: {rss[0] / 1e6:.0f} MB, then {rss[-1] / 1e6:.0f}, {slope(rss) / 1e3:.0f} kB per run",
        slope(rss) < 1e5,
        "below 100 kB",
    )
    for name, column in (("descriptors", 2), ("threads", 3)):
        few, many = (max(most(number, column) for number in part) for part in (early, late))
        say(f"sweep's launcher: {few} {name}, then {many}", many <= few, "no more than before")
    print(f"sweep: {before:.1f} s before the first run, {before / arguments.runs:.2f} for each of {arguments.runs}")


class Clock:
    """What the functions that write take, each call's seconds; of nested ones the outermost counts."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.at_epochs: list[tuple[int, float]] = []
        self._inside = threading.local()

    def time(self, owner: Any, name: str) -> None:
        """Put the clock around a function of a module or class."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return function(*args, **kwargs)
            self._inside.yes, begun = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside.yes = False
                self.calls.append(time.perf_counter() - begun)

        setattr(owner, name, timed)

    def note_epochs(self) -> None:
        """Note the calls until each epoch's start, and until the end of training."""
        for name in ("on_train_epoch_start", "on_train_end"):
            function = getattr(EpochTimer, name)

            def noting(*args: Any, function: Any = function) -> None:
                self.at_epochs.append((len(self.calls), sum(self.calls)))
                function(*args)

            setattr(EpochTimer, name, noting)


def logs(arguments: argparse.Namespace) -> None:
    """The share of an epoch of many steps that is spent writing."""
    clock = Clock()
    clock.note_epochs()
    for owner, names in {
        epoch_recorder: ["append_epochs"],
        RunRecord: ["write"],
        logging.Handler: ["handle"],
        TensorBoardLogger: ["log_metrics", "save"],
        CSVLogger: ["log_metrics", "save"],
        RecordWriter: ["write", "flush"],
    }.items():
        for name in names:
            clock.time(owner, name)
    for logger in ("tensorboard", "csv"):
        clock.calls.clear()
        clock.at_epochs.clear()
        with tempfile.TemporaryDirectory() as folder:
            run_in_process(
                Path(folder), "dataset=synthetic", "dataset.shape=[1,4,4]", f"dataset.num_train={arguments.steps}",
                "dataset.num_test=1000", "dataset.val_fraction=0", "training.batch_size=1", "training.epochs=2",
                "model.hidden_sizes=[16]", "strategy.threads_per_rank=1", f"logger={logger}",
            )  # fmt: skip
            epoch_s = read_epochs(Path(folder) / "run")["epoch_time_s"].iloc[-1]
        (calls, spent), (calls_after, spent_after) = clock.at_epochs[-2:]
        share = (spent_after - spent) / epoch_s
        say(
            f"logs, {logger}: {calls_after - calls} writes of {1e3 * (spent_after - spent):.1f} ms for an epoch of "
            f"{epoch_s:.1f} s with {arguments.steps:,} steps, {share:.3%}",
            share < 0.01,
            "below 1%",
        )


PARTS = {"samples": samples, "memory": memory, "sweep": sweep, "logs": logs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--samples", type=int, default=15_000, help="N, of the part `samples`")
    parser.add_argument("--rounds", type=int, default=5, help="of the part `samples`")
    parser.add_argument("--threads", type=int, default=1, help="of the part `samples`")
    parser.add_argument("--epochs", type=int, default=100, help="of the part `memory`")
    parser.add_argument("--runs", type=int, default=200, help="of the part `sweep`")
    parser.add_argument("--steps", type=int, default=100_000, help="of the part `logs`")
    arguments = parser.parse_args()
    for name in arguments.parts:
        PARTS[name](arguments)


if __name__ == "__main__":
    main()
