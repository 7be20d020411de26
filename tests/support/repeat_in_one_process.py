"""Repeats something in one process and counts what that process holds after each time.

`python repeat_in_one_process.py runs NUMBER OVERRIDES` trains NUMBER times by laptime.run. `jobs NUMBER OVERRIDES`
starts a sweep of NUMBER jobs that train nothing. It writes a JSON list of what `held` returns to counts.json.
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


def held() -> dict[str, int]:
    """Threads, descriptors and objects of some packages' classes that are alive in this process."""
    gc.collect()
    names = (f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    objects = Counter(name for name in names if name.startswith(PACKAGES))
    return {"threads": threading.active_count(), "descriptors": psutil.Process().num_fds(), **objects}


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: number - before.get(name, 0) for name, number in after.items() if number > before.get(name, 0)}


def count_runs(number: int, overrides: list[str]) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = []
    for index in range(number):
        laptime.run([*overrides, f"hydra.run.dir=run{index}"])
        counts.append(held())
    deadline = time.monotonic() + 60
    while growth(counts[number // 2 - 1], counts[-1]) and time.monotonic() < deadline:
        time.sleep(0.1)  # what has ended may not have been tidied up yet; what is held stays
        counts[-1] = held()
    return counts


def count_jobs(number: int, overrides: list[str]) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = []

    def job(*arguments: Any, **keywords: Any) -> RunRecord:
        counts.append(held())
        return RunRecord(config={"optimized_metric": None})

    sweep.run_job = job
    try:
        cli.main(["-m", f"seed=range(0,{number})", *overrides])
    except SystemExit as end:
        assert not end.code
    return counts


if __name__ == "__main__":
    what, typed_number, *typed = sys.argv[1:]
    count = {"runs": count_runs, "jobs": count_jobs}[what]
    Path("counts.json").write_text(json.dumps(count(int(typed_number), typed)))
