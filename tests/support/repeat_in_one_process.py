"""Repeat something in one process, and count the resources of the process after each repetition.

`python repeat_in_one_process.py runs NUMBER OVERRIDES` trains NUMBER times with laptime.run. `jobs NUMBER OVERRIDES`
starts a sweep of NUMBER jobs that don't train. Both write the list of counts to counts.json.
"""

import gc
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

import laptime
from laptime import cli
from laptime.record.run_record import RunRecord
from laptime.sweeps import sweep

PACKAGES = ("laptime.", "pytorch_lightning.", "tensorboard.", "omegaconf.")


def count_resources() -> dict[str, int]:
    """Count threads, descriptors, and live objects of some packages' classes."""
    gc.collect()
    names = (f"{type(value).__module__}.{type(value).__qualname__}" for value in gc.get_objects())
    objects = Counter(name for name in names if name.startswith(PACKAGES))
    return {"threads": threading.active_count(), "descriptors": psutil.Process().num_fds(), **objects}


def growth(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    return {name: number - old.get(name, 0) for name, number in new.items() if number > old.get(name, 0)}


def count_runs(number: int, overrides: list[str]) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = []
    for index in range(number):
        laptime.run([*overrides, f"hydra.run.dir=run{index}"])
        counts.append(count_resources())
    deadline = time.monotonic() + 60
    while growth(counts[number // 2 - 1], counts[-1]) and time.monotonic() < deadline:
        time.sleep(0.1)  # threads may take a moment to end; a leak stays
        counts[-1] = count_resources()
    return counts


def count_jobs(number: int, overrides: list[str]) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = []

    def job(*arguments: Any, **keywords: Any) -> RunRecord:
        counts.append(count_resources())
        return RunRecord(config={"optimized_metric": None})

    sweep.run_job = job
    try:
        cli.main(["-m", f"seed=range(0,{number})", *overrides])
    except SystemExit as end:
        assert not end.code
    return counts


if __name__ == "__main__":
    subject, number_text, *cli_overrides = sys.argv[1:]
    count = {"runs": count_runs, "jobs": count_jobs}[subject]
    Path("counts.json").write_text(json.dumps(count(int(number_text), cli_overrides)))
