"""From the command to the first step of training, against importing what it is built on, by turns.

    python benchmarks/start_up.py                  # 9 rounds, files in the page cache

One side is `python train.py`, from the start of its process until its first batch is asked for (`timing.startup_s`).
The other is a bare process that imports torch, torchvision, Lightning and Hydra, from its start until that is done.
Printed: medians in seconds and the ratio, with its smallest and largest round. Goal: at most 1.3.
"""

import argparse
import statistics
import subprocess
import sys

from ratios import SHORT, run_apart

IMPORTS = """
import time
import torch, torchvision, pytorch_lightning, hydra
done = time.time()
import psutil
print(done - psutil.Process().create_time())
"""


def imports_s() -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout)


def startup_s() -> float:
    (record,) = run_apart(*SHORT, "training.epochs=1", "dataset.limit=1000")
    seconds: float = record["timing"]["startup_s"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    imports, startup = [], []
    for number in range(arguments.rounds + 1):
        for side, seconds in ((imports_s, imports), (startup_s, startup))[:: 1 if number % 2 else -1]:
            seconds.append(side())
    del imports[0], startup[0]  # the first of each fills the page cache
    ratios = [ours / theirs for ours, theirs in zip(startup, imports, strict=True)]
    print(f"imports {statistics.median(imports):.2f} s, first step {statistics.median(startup):.2f} s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); goal: at most 1.3")


if __name__ == "__main__":
    main()
