"""Compare help, completion and refusals with importing torch, alternately.

    python benchmarks/light_commands.py            # 9 rounds, files in the page cache

One side is the whole process of a command that needs no torch, from its start to its exit. The other is a process that
only imports torch. Printed: the medians, as processes per minute, and the ratio of times as median, smallest and
largest round.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from ratios import TRAIN, Comparison, Measured, add_arguments, report

GOAL = 0.3
# The variables that bash sets for a completion.
COMPLETION = {"COMP_LINE": "laptime model=", "COMP_POINT": "14"}

TORCH = ("-c", "import torch")
SCRIPT, LAPTIME = (str(TRAIN),), ("-m", "laptime")
COMMANDS = {
    "--help": (*SCRIPT, "--help"),
    "--cfg job": (*SCRIPT, "--cfg", "job"),
    "--hydra-help": (*SCRIPT, "--hydra-help"),
    "--info searchpath": (*SCRIPT, "--info", "searchpath"),
    "completion": (*LAPTIME, "--shell-completion", "query=bash"),
    "unknown key": (*SCRIPT, "training.epoch=3"),
    "wrong type": (*SCRIPT, "training.epochs=x"),
    "out of range": (*SCRIPT, "training.epochs=-1"),
    "bad syntax": (*SCRIPT, "training.epochs=[1"),
    "unknown option": (*SCRIPT, "--foo"),
    "wrong job": (*SCRIPT, "-m", "training.epochs=1,-1"),
    "sweep.resume=nope": (*SCRIPT, "sweep.resume=nope"),
    "evaluate run=nope": (*LAPTIME, "evaluate", "run=nope"),
    "export run=nope": (*LAPTIME, "export", "run=nope"),
    "tune nope": (*LAPTIME, "tune", "nope"),
    "watch nope": (*LAPTIME, "watch", "nope"),
    "doctor nope": (*LAPTIME, "doctor", "nope"),
    "analyze nope": (*LAPTIME, "analyze", "nope"),
    "unknown command": (*LAPTIME, "nope"),
}


def process_s(arguments: tuple[str, ...], folder: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, cwd=folder, env=os.environ | COMPLETION)
    return time.perf_counter() - started


def compare(title: str, rounds: int, folder: str) -> Comparison:
    sides: dict[str, list[Measured]] = {"import torch": [], title: []}
    for number in range(rounds + 1):
        for (_, measured), arguments in list(zip(sides.items(), (TORCH, COMMANDS[title]), strict=True))[
            :: 1 if number % 2 else -1
        ]:
            measured.append(Measured(60 / process_s(arguments, folder)))
    for measured in sides.values():
        del measured[0]  # the first round fills the page cache
    return Comparison(title, sides, {title: GOAL}, of_times=True, unit="processes/min")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--only", choices=COMMANDS, metavar="COMMAND", help="measure one of the commands")
    arguments = parser.parse_args()
    titles = list(COMMANDS) if arguments.only is None else [arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        comparisons = (compare(title, arguments.rounds, folder) for title in titles)
        report(comparisons, "Help, completion and refusals", arguments.plot)


if __name__ == "__main__":
    main()
