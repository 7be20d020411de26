"""The command `laptime doctor`: checks what works on this machine, and how noisy it is."""

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence

from laptime import starting
from laptime.command_line import Parser, run_command
from laptime.errors import UserError, exit_code_of, ignore_broken_pipe

_ABOUT = """\
Checks this machine: processor, memory and devices, whether training and
communication between ranks work, how noisy timings are now, and what to
change first."""
_EXAMPLES = {"": "", "--seconds 30": "probe the noise for longer", "--json": "for programs"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 even on a noisy machine, 1 if a device or a backend is broken, 2 for a mistake in the
    arguments, 130 for Ctrl-C."""
    return exit_code_of(lambda: _run(make_parser().parse_args(arguments)))


def make_parser() -> Parser:
    parser = Parser("doctor", _ABOUT, _EXAMPLES)
    parser.add_argument(
        "--seconds",
        default="10",
        metavar="S",
        help="how long to measure the noise of timings, at least 1 (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    return parser


def _run(args: argparse.Namespace) -> int:
    starting.hand_over()
    seconds = _seconds(args.seconds)
    from laptime.runner import fresh_processes

    # Ctrl-C also reaches the forkserver, which inherits this handler. Without it the forkserver prints a traceback.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    fresh_processes.preload()
    signal.signal(signal.SIGINT, handler)
    from rich.console import Console

    from laptime.doctor.examine import examine
    from laptime.doctor.show import show
    from laptime.record.files import finite
    from laptime.terminal import replace_unencodable

    replace_unencodable()
    report = examine(seconds, _print_progress)
    with ignore_broken_pipe():
        if args.json:
            print(json.dumps(finite(report), indent=2))
        else:
            show(report, Console())
    return 1 if report["broken"] else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise UserError(f"--seconds {text}: must be a number of at least 1, e.g. 10.")
    return seconds


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
