"""Do sweeps hang, leave processes behind or fight over ports? Many in a row, two of them side by side each time.

    python benchmarks/many_sweeps.py               # 50 times two sweeps of two short runs, started in the same second
    python benchmarks/many_sweeps.py --sweeps 5

Printed: how many sweeps and runs completed, what went wrong, and what a run costs beyond its training: from the end of
the run before it (once the first has started) to its own end, less its epochs with validation.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SHORT = ["strategy.world_size=1,2", "dataset.limit=2000", "training.epochs=2", "device=cpu", "logger=none"]


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAIN), "-m", *SHORT]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def overheads(records: list[dict[str, Any]]) -> list[float]:
    """Seconds of each run after the first that were neither training nor validation."""

    def at(record: dict[str, Any], key: str) -> float:
        return datetime.fromisoformat(record[key]).timestamp()

    return [
        at(this, "ended_at") - at(before, "ended_at") - this["timing"]["total_train_s"]
        for before, this in itertools.pairwise(records)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=50, help="pairs of sweeps")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a sweep counts as hung")
    parser.add_argument("--alone", action="store_true", help="one sweep at a time: what a run costs undisturbed")
    arguments = parser.parse_args()
    completed = 0
    costs: list[float] = []
    problems: list[str] = []
    at_once = 1 if arguments.alone else 2
    for number in range(arguments.sweeps):
        with tempfile.TemporaryDirectory() as folder:
            sweeps = [start(Path(folder)) for _ in range(at_once)]
            for sweep in sweeps:
                try:
                    errors = sweep.communicate(timeout=arguments.timeout)[1]
                except subprocess.TimeoutExpired:
                    problems.append(f"{number}: hung")
                    sweep.kill()
                    errors = sweep.communicate()[1]
                if sweep.returncode != 0:
                    problems.append(f"{number}: exit code {sweep.returncode}: {errors[-300:]}")
            left = [each for each in psutil.Process(os.getpid()).children(recursive=True) if each.is_running()]
            pids = {pid for path in Path(folder).rglob("run.json") for pid in rank_pids(path)}
            problems += [f"{number}: left behind {each}" for each in left]
            problems += [f"{number}: rank {pid} is still there" for pid in pids if psutil.pid_exists(pid)]
            folders = sorted({path.parents[1] for path in Path(folder).rglob("run.json")})
            if len(folders) != at_once:
                problems.append(f"{number}: {len(folders)} sweep directories for {at_once} sweeps")
            for each in folders:
                records = [json.loads(path.read_text()) for path in sorted(each.glob("*/run.json"))]
                completed += sum(record["status"] == "completed" for record in records)
                if all(record["status"] == "completed" for record in records):
                    costs += overheads(records)
    expected = 2 * at_once * arguments.sweeps
    print(f"{completed} of {expected} runs completed in {at_once * arguments.sweeps} sweeps, {at_once} at a time")
    print(f"beyond its training a run cost {statistics.median(costs):.2f} s (median; most {max(costs):.2f} s)")
    print(f"problems: {len(problems)}", *problems, sep="\n  ")
    sys.exit(bool(problems))


def rank_pids(path: Path) -> list[int]:
    """The ranks that a run.json names."""
    return json.loads(path.read_text())["strategy"]["rank_pids"] or []


if __name__ == "__main__":
    main()
