"""Find unwanted growth: of time per sample, of memory over the epochs, of later runs of a sweep, of the time for logs.

    python benchmarks/growth.py                                  # all parts, about 15 minutes
    python benchmarks/growth.py --parts sweep --runs 100
    python benchmarks/growth.py --parts samples memory --samples 5000 --rounds 3

`samples`: epochs of N, 2N and 4N synthetic images, alternately. `memory`: resident memory at the end of each of 100
epochs, and its least-squares slope from epoch 10. The allocator keeps freed memory in steps of one or two MB; `mmap` is
the same run with an allocator that returns it, so growth there comes from Laptime or Lightning. `sweep`: a sweep of
many short runs, whose launcher is observed from outside. `logs`: the time that all writers, TensorBoard's thread
included and checkpoints excluded, take in an epoch of 100,000 steps. Every line ends with its goal.
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


def print_result(text: str, met: bool, goal: str) -> None:
    print(f"{text}; goal: {goal}: {'met' if met else 'MISSED'}", flush=True)


def samples(arguments: argparse.Namespace) -> None:
    """Compare seconds per sample in epochs of N, 2N and 4N samples."""
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
        ratios = [seconds / base for seconds, base in zip(per_thousand[size], smallest, strict=True)]
        ratio = statistics.median(ratios)
        print_result(
            f"samples: {statistics.median(per_thousand[size]):.4f} s per 1,000 of {size:,} samples, {ratio:.3f} x that "
            f"of {sizes[0]:,} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds)",
            abs(ratio - 1) <= 0.1,
            "0.9 to 1.1",
        )


def memory(arguments: argparse.Namespace) -> None:
    """Fit the resident memory over the epochs, for the rank whose memory grows fastest."""
    return_memory = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    variants: dict[str, tuple[list[str], dict[str, str]]] = {
        "one rank": (["logger=none"], {}),
        "one rank, mmap": (["logger=none"], return_memory),
        "one rank, TensorBoard, mmap": (["logger=tensorboard"], return_memory),
        "two ranks, shared memory, mmap": (
            ["logger=none", "strategy.world_size=2", "strategy.comm_hook=shared_memory"],
            return_memory,
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
        print_result(
            f"memory, {name}: {by_rank[most][10] / 1e6:.1f} MB at epoch 10, {by_rank[most][-1] / 1e6:.1f} at "
            f"{arguments.epochs}, {slopes[most]:.1f} kB per epoch",
            slopes[most] < 20,
            "below 20 kB",
        )


def slope(values: Sequence[float]) -> float:
    """Least-squares slope per element."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def sweep(arguments: argparse.Namespace) -> None:
    """Compare early and late runs of one sweep, and the resources that its launcher uses during both."""
    overrides = ["dataset.limit=500", "training.epochs=1", "strategy.threads_per_rank=1"]
    overrides.append(f"seed=range(0,{arguments.runs})")
    with tempfile.TemporaryDirectory() as folder:
        started_at = time.time()
        launcher = psutil.Popen(
            [sys.executable, str(TRAIN), "-m", *SHORT, *overrides, "hydra.sweep.dir=sweep"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        observations = []
        while launcher.poll() is None:
            with contextlib.suppress(psutil.Error):
                resources = (launcher.memory_info().rss, launcher.num_fds(), launcher.num_threads())
                observations.append((time.time(), *resources))
            time.sleep(0.1)
        paths = sorted(Path(folder, "sweep").glob("*/run.json"), key=lambda path: int(path.parent.name))
        ended = [parse_timestamp(json.loads(path.read_text())["ended_at"]) for path in paths]
        startup_s = parse_timestamp(json.loads(paths[0].read_text())["started_at"]) - started_at
    if launcher.returncode != 0 or len(ended) != arguments.runs:
        sys.exit(f"sweep: {len(ended)} runs of {arguments.runs}, exit code {launcher.returncode}")
    num_runs = min(30, arguments.runs // 3)
    first_early = min(10, num_runs)
    early, late = range(first_early, first_early + num_runs), range(arguments.runs - num_runs, arguments.runs)
    times = np.diff([ended[0], *ended])
    first, last = np.median(times[list(early)]), np.median(times[list(late)])

    def largest(number: int, column: int) -> int:
        """The largest value of a column during a run."""
        return max(row[column] for row in observations if ended[number - 1] < row[0] <= ended[number])

    span = f"runs {early.start} to {early.stop - 1} against the last {num_runs}"
    print_result(
        f"sweep: {first:.2f} s per run, later {last:.2f} s, {last / first:.3f} x ({span})",
        0.9 <= last / first <= 1.1,
        "0.9 to 1.1",
    )
    rss = [largest(number, 1) for number in range(early.start, arguments.runs)]
    print_result(
        f"sweep's launcher: {rss[0] / 1e6:.0f} MB, later {rss[-1] / 1e6:.0f} MB, {slope(rss) / 1e3:.0f} kB per run",
        slope(rss) < 1e5,
        "below 100 kB",
    )
    for name, column in (("descriptors", 2), ("threads", 3)):
        early_count, late_count = (max(largest(number, column) for number in runs) for runs in (early, late))
        text = f"sweep's launcher: {early_count} {name}, later {late_count}"
        print_result(text, late_count <= early_count, "no growth")
    per_run_s = startup_s / arguments.runs
    print(f"sweep: {startup_s:.1f} s before the first run, {per_run_s:.2f} s for each of {arguments.runs} runs")


class CallTimer:
    """Seconds of each call of the timed functions. In nested calls only the outermost counts."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.at_epochs: list[tuple[int, float]] = []
        self._inside = threading.local()

    def time(self, owner: Any, name: str) -> None:
        """Time a function of a module or class."""
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
        """Note the number and sum of calls at each epoch's start and at the end of training."""
        for name in ("on_train_epoch_start", "on_train_end"):
            function = getattr(EpochTimer, name)

            def noting(*args: Any, function: Any = function) -> None:
                self.at_epochs.append((len(self.calls), sum(self.calls)))
                function(*args)

            setattr(EpochTimer, name, noting)


def logs(arguments: argparse.Namespace) -> None:
    """Measure the fraction of an epoch of many steps that is spent writing."""
    clock = CallTimer()
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
        fraction = (spent_after - spent) / epoch_s
        print_result(
            f"logs, {logger}: {calls_after - calls} writes take {1e3 * (spent_after - spent):.1f} ms of an epoch of "
            f"{epoch_s:.1f} s with {arguments.steps:,} steps, {fraction:.3%}",
            fraction < 0.01,
            "below 1%",
        )


PARTS = {"samples": samples, "memory": memory, "sweep": sweep, "logs": logs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--samples", type=int, default=15_000, help="N in the part `samples`")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the part `samples`")
    parser.add_argument("--threads", type=int, default=1, help="threads in the part `samples`")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of the part `memory`")
    parser.add_argument("--runs", type=int, default=200, help="runs of the part `sweep`")
    parser.add_argument("--steps", type=int, default=100_000, help="steps per epoch in the part `logs`")
    arguments = parser.parse_args()
    for name in arguments.parts:
        PARTS[name](arguments)


if __name__ == "__main__":
    main()
