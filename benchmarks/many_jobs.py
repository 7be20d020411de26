"""Time how long a sweep of many jobs takes to be composed and checked, before its first job starts.

    python benchmarks/many_jobs.py                 # 1,000 jobs, 5 rounds
    python benchmarks/many_jobs.py --jobs 100

Printed for each kind of sweep: jobs per second, and the time per job as a ratio to composing one configuration with
Hydra; both are measured alternately in one process that has loaded torch. The last line is the time of a whole dry run
(`sweep.dry_run=true`), as a ratio to the time of a process that only imports torch.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch  # noqa: F401  loaded before anything is timed

from laptime.config.compose import compose, hydra_session
from laptime.config.identity import snapshot
from laptime.runner.check import check_classes, check_settings_of_jobs
from laptime.sweeps.plan import plan_runs, refuse_repeated_runs

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
GOAL = 0.1  # of the ratio of times


def kinds(num_jobs: int) -> dict[str, list[str]]:
    """The overrides of each kind of sweep."""
    return {
        "seeds": [f"seed=range(0,{num_jobs})"],
        "seeds, models, optimizers": [f"seed=range(0,{num_jobs // 4})", "model=mlp,cnn", "optimizer=sgd,adam"],
        "an experiment": ["experiment=quick", f"seed=range(0,{num_jobs // 2})", "optimizer.lr=0.1,0.01"],
    }


def seconds(function: Callable[[], Any]) -> float:
    started_at = time.perf_counter()
    function()
    return time.perf_counter() - started_at


def prepare(overrides: Sequence[str]) -> None:
    """Do what a sweep does with its jobs before the first one starts."""
    with hydra_session() as hydra:
        runs = plan_runs(hydra, overrides)
        configs = check_settings_of_jobs(runs, overrides)
        check_classes(configs, overrides)
        refuse_repeated_runs(runs, configs)
        for config in configs:
            snapshot(config)


def compose_one() -> None:
    with hydra_session() as hydra:
        compose(hydra, ["seed=1"])


def process_s(*arguments: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *arguments]
        return seconds(lambda: subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="number of jobs of each sweep")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prepare(["seed=1,2"])
    for kind, overrides in kinds(arguments.jobs).items():
        times, ratios = [], []
        for _ in range(arguments.rounds):
            single_s = statistics.median(seconds(compose_one) for _ in range(3))
            times.append(seconds(lambda overrides=overrides: prepare(overrides)))  # type: ignore[misc]
            ratios.append(times[-1] / arguments.jobs / single_s)
        per_s = arguments.jobs / statistics.median(times)
        print(f"{kind}: {per_s:.0f} jobs/s; per job {statistics.median(ratios):.3f} of composing one "
              f"({min(ratios):.3f} to {max(ratios):.3f}; goal: at most {GOAL})", flush=True)  # fmt: skip
    dry_run = (str(TRAIN), "-m", *kinds(arguments.jobs)["seeds"], "sweep.dry_run=true")
    pairs = [(process_s(*dry_run), process_s("-c", "import torch")) for _ in range(arguments.rounds)]
    whole_s, ratio = (statistics.median(values) for values in zip(*((a, a / b) for a, b in pairs), strict=True))
    print(f"whole dry run of {arguments.jobs:,} jobs: {whole_s:.1f} s, {ratio:.1f} times `import torch`")


if __name__ == "__main__":
    main()
