"""Compare the time that the analysis of ten runs takes with the time of importing torch, alternately.

    python benchmarks/analyze_few_runs.py          # 9 rounds, files in the page cache

Every side is a whole process. Printed: its median seconds, and the ratio to importing torch as median, smallest and
largest round. The sweeps differ in what their analysis needs:

ranks      1 and 2 ranks, five repeats each: intervals
fit        1, 2, 3, 4 and 5 ranks, two repeats each: intervals, and laws fitted to the speedups
settings   two learning rates, five repeats each: intervals, and a test whether they differ
plots      the sweep `ranks`, analyzed with plots
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
# 1.5 s where importing torch takes 1.75 s.
GOAL = 0.86
BASELINE = "import torch"


def write_runs(folder: Path) -> None:
    """Write the sweeps ranks/, fit/ and settings/."""
    from analysis.conftest import write_run

    for number in range(10):
        times = [2.0, *(1.0 + number / 50 + epoch / 1000 for epoch in range(2))]
        write_run(folder / "ranks" / str(number), times, 1 + number // 5, number % 5)
        write_run(folder / "fit" / str(number), times, 1 + number // 2, number % 2)
        write_run(
            folder / "settings" / str(number), times, seed=number % 5, changed={"optimizer.lr": 0.1 / (1 + number // 5)}
        )


def process_s(*arguments: str) -> float:
    """Return the seconds that a Python process takes from its start to its end."""
    started_at = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder))
        sides = {BASELINE: ["-c", "import torch"]}
        for name in ("ranks", "fit", "settings"):
            sides[name] = ["-m", "laptime.analysis", f"{folder}/{name}", "--no-plots"]
        sides["plots"] = sides["ranks"][:-1]
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side in list(sides)[:: 1 if number % 2 else -1]:
                seconds[side].append(process_s(*sides[side]))
    print(f"The analysis of ten runs, medians (min to max) of {rounds} rounds")
    for side, values in seconds.items():
        del values[0]  # the first round fills the page cache
        ratios = [value / baseline for value, baseline in zip(values, seconds[BASELINE], strict=True)]
        ratio = statistics.median(ratios)
        line = f"  {side:12} {statistics.median(values):5.2f} s ({min(values):.2f} to {max(values):.2f})"
        if side != BASELINE:
            line += f"  {ratio:.2f} x the time ({min(ratios):.2f} to {max(ratios):.2f})"
        if side not in (BASELINE, "plots"):
            line += f"  goal: at most {GOAL} x, {'met' if ratio <= GOAL else 'not met'}"
        print(line)


if __name__ == "__main__":
    main()
