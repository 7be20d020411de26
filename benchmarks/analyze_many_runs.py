"""Time the analysis of 250, 500 and 1,000 run directories with 50 epochs and up to 8 ranks each.

    python benchmarks/analyze_many_runs.py

Each size is analyzed in a new process. Printed: seconds for loading, tables and JSON; seconds for plots and reports;
the peak memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def write_runs(folder: Path, num_runs: int) -> None:
    from analysis.conftest import write_run

    for number in range(num_runs):
        batch_size, world_size, seed = 2 ** (number // 20), (1, 2, 4, 8)[number // 5 % 4], number % 5
        times = [2.0, *[1 + 0.1 * world_size + seed / 100 + epoch / 1000 for epoch in range(49)]]
        write_run(folder / str(number), times, 4 if world_size == 4 else world_size, seed,
                  changed={"training.batch_size": batch_size % 2**40 + number // 800})  # fmt: skip


def analyze_once(folder: Path) -> None:
    started_at = time.perf_counter()
    from laptime.analysis.analyze import analyze
    from laptime.analysis.write import write_reports, write_tables

    analysis = analyze([folder])
    write_tables(analysis, folder / "summary")
    tables_s = time.perf_counter() - started_at
    write_reports(analysis, folder / "summary")
    reports_s = time.perf_counter() - started_at - tables_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(analysis.runs):6,} runs  {len(analysis.groups):4} groups  tables and JSON {tables_s:6.2f} s  "
          f"plots and reports {reports_s:6.2f} s  peak memory {peak:.2f} GB", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        analyze_once(args.folder)
        return
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_runs(Path(folder), size)
            subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
