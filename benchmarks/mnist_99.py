"""Time to 99% accuracy on MNIST: `python train.py experiment=mnist_99` on the CPU, over several seeds.

    python benchmarks/mnist_99.py                          # 5 seeds, on an idle machine
    python benchmarks/mnist_99.py --seeds 10 training.precision=32-true

Each seed is one process. Printed per seed: the test accuracy; the seconds of the whole command, with imports, data and
test; the seconds from the first step to the end of the last epoch, with checkpoints; and the CPU seconds, which
depend less on other processes. Then medians with the smallest and the largest. Exit code 1: a seed stayed below 99%.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
GOAL = 0.99


class Result(NamedTuple):
    accuracy: float
    command_s: float
    training_s: float
    cpu_s: float


def run(seed: int, overrides: list[str], folder: Path) -> Result:
    def cpu_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    arguments = ["experiment=mnist_99", "device=cpu", f"seed={seed}", f"hydra.run.dir={folder}", *overrides]
    start, cpu_start = time.perf_counter(), cpu_s()
    subprocess.run([sys.executable, str(TRAIN), *arguments], check=True, capture_output=True)
    command_s = time.perf_counter() - start
    record = json.loads((folder / "run.json").read_text())
    return Result(record["result"]["test_accuracy"], command_s, record["timing"]["total_train_s"], cpu_s() - cpu_start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="further overrides of train.py")
    arguments = parser.parse_args()
    results = []
    print("seed  test accuracy  command  training  CPU", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, arguments.seeds + 1):
            result = run(seed, arguments.overrides, Path(folder) / str(seed))
            accuracy, command_s, training_s, cpu_s = result
            print(f"{seed:4}  {accuracy:13.2%}  {command_s:5.1f} s  {training_s:6.1f} s  {cpu_s:.1f} s", flush=True)
            results.append(result)
    for name, *values in zip(Result._fields, *results, strict=True):
        print(f"{name}: {statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})")
    reached = sum(result.accuracy >= GOAL for result in results)
    print(f"{reached} of {len(results)} seeds reached {GOAL:.0%}")
    return 0 if reached == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
