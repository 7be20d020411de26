"""Run many pairs of concurrent sweeps, and count hangs, orphaned processes and conflicts over ports.

    python benchmarks/many_sweeps.py               # 50 pairs of sweeps of two short runs, started in the same second
    python benchmarks/many_sweeps.py --sweeps 5
    python benchmarks/many_sweeps.py --sweeps 5 --alone --plain

Printed: the number of completed sweeps and runs, what went wrong, and the overhead of a run after the first: the time
from the end of the previous run to its own end, minus its epochs with validation.
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


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAIN), "-m", *SHORT, *overrides]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def overheads(records: list[dict[str, Any]]) -> list[float]:
    """Seconds of each run after the first that were neither training nor validation."""

    def end_time(record: dict[str, Any]) -> float:
        return datetime.fromisoformat(record["ended_at"]).timestamp()

    return [
        end_time(record) - end_time(previous) - record["timing"]["total_train_s"]
        for previous, record in itertools.pairwise(records)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=50, help="number of pairs of sweeps")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a sweep counts as hung")
    parser.add_argument("--alone", action="store_true", help="run one sweep at a time: the overhead without contention")
    parser.add_argument("--plain", action="store_true", help="without measure.breakdown and measure.peak")
    arguments = parser.parse_args()
    plain = ("measure.breakdown=false", "measure.peak=false") if arguments.plain else ()
    completed = 0
    costs: list[float] = []
    problems: list[str] = []
    num_concurrent = 1 if arguments.alone else 2
    for number in range(arguments.sweeps):
        with tempfile.TemporaryDirectory() as folder:
            sweeps = [start(Path(folder), *plain) for _ in range(num_concurrent)]
            for sweep in sweeps:
                try:
                    errors = sweep.communicate(timeout=arguments.timeout)[1]
                except subprocess.TimeoutExpired:
                    problems.append(f"{number}: hung")
                    sweep.kill()
                    errors = sweep.communicate()[1]
                if sweep.returncode != 0:
                    problems.append(f"{number}: exit code {sweep.returncode}: {errors[-300:]}")
            children = psutil.Process(os.getpid()).children(recursive=True)
            pids = {pid for path in Path(folder).rglob("run.json") for pid in rank_pids(path)}
            problems += [f"{number}: left behind {child}" for child in children if child.is_running()]
            problems += [f"{number}: rank {pid} is still running" for pid in pids if psutil.pid_exists(pid)]
            sweep_dirs = sorted({path.parents[1] for path in Path(folder).rglob("run.json")})
            if len(sweep_dirs) != num_concurrent:
                problems.append(f"{number}: {len(sweep_dirs)} sweep directories for {num_concurrent} sweeps")
            for sweep_dir in sweep_dirs:
                records = [json.loads(path.read_text()) for path in sorted(sweep_dir.glob("*/run.json"))]
                completed += sum(record["status"] == "completed" for record in records)
                if all(record["status"] == "completed" for record in records):
                    costs += overheads(records)
    num_sweeps = num_concurrent * arguments.sweeps
    print(f"{completed} of {2 * num_sweeps} runs completed in {num_sweeps} sweeps, {num_concurrent} at a time")
    print(f"overhead per run: {statistics.median(costs):.2f} s (median; largest {max(costs):.2f} s)")
    print(f"problems: {len(problems)}", *problems, sep="\n  ")
    sys.exit(bool(problems))


def rank_pids(path: Path) -> list[int]:
    """Process ids of the ranks, from a run.json."""
    return json.loads(path.read_text())["strategy"]["rank_pids"] or []


if __name__ == "__main__":
    main()
