"""Measure the cost of measuring: alternate epochs with all instruments and with none, in one run.

    python benchmarks/instrument_cost.py                       # MLP on MNIST, batch 64, 60 pairs of epochs
    python benchmarks/instrument_cost.py --model cnn --limit 4000 --pairs 40

The instruments are the sampler's thread, and the counters of the machine that are read before and after an epoch
(energy too, where there is a counter). The breakdown, the peak probe and the bare loop run after the epochs, so they
don't matter here. Which epoch of a pair comes first changes from pair to pair. Printed: the median ratio of epoch times
with its 95% bootstrap interval, and the CPU time of the sampler's thread.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

import laptime
from laptime.lap import clock
from laptime.lap.epoch_timer import EpochTimer
from laptime.machine import counters
from laptime.machine.device import resolve
from laptime.measure.sampler import Sampler
from laptime.record.files import read_epochs

SNAPSHOT, USAGE = counters.snapshot, clock.usage


class Switch:
    """Turns the instruments on and off from epoch to epoch."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.sampler: Sampler | None = None
        self.samplers: list[Sampler] = []
        self.constants = (SNAPSHOT([os.getpid()]), USAGE())

    def is_on(self, epoch: int) -> bool:
        """Epochs 1 and 2, 3 and 4, ... are pairs; epoch 0 is the warm-up."""
        pair, second = divmod(epoch - 1, 2)
        return bool((pair + second) % 2)

    def turn(self, epoch: int) -> None:
        if self.sampler is not None:
            self.sampler.stop()
            self.sampler = None
        if self.is_on(epoch):
            counters.snapshot, clock.usage = SNAPSHOT, USAGE
            self.sampler = Sampler([os.getpid()], resolve("cpu", "cpu"), self.interval_s, warn_at=1.0)
            self.samplers.append(self.sampler)
            self.sampler.start()
        else:
            snapshot, usage = self.constants
            counters.snapshot, clock.usage = lambda *_: replace(snapshot, at_s=time.perf_counter()), lambda: usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--limit", type=int, default=60_000, help="training samples")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between samples")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    switch = Switch(arguments.interval)
    begin = EpochTimer.on_train_epoch_start

    def turn_and_begin(timer: EpochTimer, trainer, module) -> None:
        switch.turn(trainer.current_epoch)
        begin(timer, trainer, module)

    EpochTimer.on_train_epoch_start = turn_and_begin
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        laptime.run(
            [
                f"model={arguments.model}", f"dataset.limit={arguments.limit}", f"hydra.run.dir={run_dir}",
                f"training.epochs={2 * arguments.pairs + 1}", f"strategy.threads_per_rank={arguments.threads}",
                "dataset.val_fraction=0", "scheduler=none", "device=cpu", "logger=none", "callbacks.checkpoint=null",
                "measure.sample_interval_s=null", "measure.breakdown=false", "measure.peak=false",
            ]
        )  # fmt: skip
        epochs = list(read_epochs(run_dir)["epoch_time_s"])
    switch.turn(1 if not switch.is_on(1) else 2)
    ratios = []
    for first in range(1, len(epochs), 2):
        on, off = (first, first + 1) if switch.is_on(first) else (first + 1, first)
        ratios.append(epochs[on] / epochs[off])
    interval = bootstrap((np.array(ratios),), np.median, n_resamples=9999, method="percentile", rng=1)
    low, high = interval.confidence_interval
    cores = sum(sampler.cost_s for sampler in switch.samplers) / sum(sampler.wall_s for sampler in switch.samplers)
    num_samples = sum(sampler.num_samples for sampler in switch.samplers)
    print(f"{arguments.model}: epochs of {statistics.median(epochs):.3f} s, {len(ratios)} pairs")
    print(f"with instruments {statistics.median(ratios):.4f} x the time without (95% interval {low:.4f} to {high:.4f})")
    print(f"the sampler's thread: {cores:.3%} of a core, {num_samples} samples")


if __name__ == "__main__":
    main()
