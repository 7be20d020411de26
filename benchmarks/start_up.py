"""Compare the time from the command to the first step with the time of its imports, alternately.

    python benchmarks/start_up.py                  # 9 rounds, files in the page cache
    python benchmarks/start_up.py --plot docs/figures/start_up.svg

One side is `python train.py`, from the start of its process to the request for its first batch (`timing.startup_s`).
The other is a process that only imports torch, torchvision, Lightning and Hydra, from its start to the end of the
imports. Printed: the medians, as starts per minute, and the ratio of times as median, smallest and largest round.
"""

import argparse
import subprocess
import sys

from ratios import SHORT, Comparison, Measured, add_arguments, report, run_in_subprocess

GOAL = 1.3

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
    (record,) = run_in_subprocess(*SHORT, "training.epochs=1", "dataset.limit=1000")
    seconds: float = record["timing"]["startup_s"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    arguments = parser.parse_args()
    imports, startup = [], []
    for number in range(arguments.rounds + 1):
        for side, seconds in ((imports_s, imports), (startup_s, startup))[:: 1 if number % 2 else -1]:
            seconds.append(side())
    del imports[0], startup[0]  # the first round fills the page cache
    sides = {
        "imports": [Measured(60 / seconds) for seconds in imports],
        "first step": [Measured(60 / seconds) for seconds in startup],
    }
    title = "Until the first step, against importing torch, torchvision, Lightning and Hydra"
    comparison = Comparison(title, sides, {"first step": GOAL}, of_times=True, unit="starts/min")
    report([comparison], "Start-up", arguments.plot)


if __name__ == "__main__":
    main()
