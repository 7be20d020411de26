"""Compare the time from the command to the end of its first optimizer step with that of `import torch`, alternately.

    python benchmarks/start_up.py                  # 9 rounds, files in the page cache
    python benchmarks/start_up.py --slow           # also with LAPTIME_FAST_START=0
    python benchmarks/start_up.py --plot docs/figures/start_up.svg

One side is `python train.py`, MNIST with the MLP, the other `python -c "import torch"`. This process starts both, and
takes both times by its own clock: from just before it starts the process until the process tells it through a pipe that
torch is imported, or that the first optimizer step with gradients has ended. Ending the process is not counted. A
sitecustomize module makes torch report the step. Printed: the medians, as starts per minute, and the ratio of times as
median, smallest and largest round.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ratios import SHORT, TRAIN, Comparison, Measured, add_arguments, report

GOAL = 1.7
IMPORT = "import torch, os; os.write(int(os.environ['FIRST_STEP_PIPE']), b'.')"
# Python runs this before the command. It adds a hook to torch.optim.optimizer as soon as that module is imported.
REPORT_FIRST_STEP = """
import os, sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        run_module = spec.loader.exec_module

        def run_and_hook(module):
            run_module(module)

            def report(optimizer, args, kwargs):
                groups = optimizer.param_groups
                if any(weight.grad is not None for group in groups for weight in group["params"]):
                    hook.remove()
                    os.write(int(os.environ["FIRST_STEP_PIPE"]), b".")

            hook = module.register_optimizer_step_post_hook(report)

        spec.loader.exec_module = run_and_hook
        return spec

sys.meta_path.insert(0, Finder())
"""


def seconds_until_report(*command: str, **environment: str) -> float:
    """Start a Python command. Return the seconds until it writes to the pipe, then let it end."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(REPORT_FIRST_STEP)
        reading, writing = os.pipe()
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "FIRST_STEP_PIPE": str(writing), **environment}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, pass_fds=[writing],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(writing)
        reported = os.read(reading, 1)
        seconds = time.perf_counter() - start
        os.close(reading)
        _, errors = process.communicate()
        if not reported or process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.decode()}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--slow", action="store_true", help="also measure with LAPTIME_FAST_START=0")
    arguments = parser.parse_args()
    train = (str(TRAIN), *SHORT, "training.epochs=1")
    commands = {
        "import torch": lambda: seconds_until_report("-c", IMPORT),
        "first step": lambda: seconds_until_report(*train),
    }
    if arguments.slow:
        commands["first step, LAPTIME_FAST_START=0"] = lambda: seconds_until_report(*train, LAPTIME_FAST_START="0")
    seconds: dict[str, list[float]] = {side: [] for side in commands}
    for number in range(arguments.rounds + 1):
        for side in list(commands)[:: 1 if number % 2 else -1]:
            seconds[side].append(commands[side]())
    # The first round fills the page cache.
    sides = {side: [Measured(60 / value) for value in values[1:]] for side, values in seconds.items()}
    title = "From the command to the end of the first optimizer step, against importing torch"
    comparison = Comparison(title, sides, {"first step": GOAL}, of_times=True, unit="starts/min")
    report([comparison], "Start-up", arguments.plot)


if __name__ == "__main__":
    main()
