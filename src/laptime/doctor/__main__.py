"""python -m laptime.doctor: what this machine is, what works on it, how noisy it is now, what to change first."""

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence

from laptime.errors import UserError, exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 whatever the noise, 1 where a device or a backend is broken, 2 for a mistake in what was
    typed, 130 for Ctrl-C."""
    args = _parser().parse_args(arguments)
    return exit_code_of(lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m laptime.doctor", description=__doc__)
    parser.add_argument(
        "--seconds", default="10", metavar="S", help="how long to probe the noise, at least 1; default: 10"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON object")
    return parser


def _run(args: argparse.Namespace) -> int:
    seconds = _seconds(args.seconds)
    from laptime.runner import fresh_processes

    # Ctrl-C reaches the server that ranks are copied from as well; there it would only leave a traceback.
    heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)
    fresh_processes.preload()
    signal.signal(signal.SIGINT, heeded)
    from rich.console import Console

    from laptime.doctor.examine import examine
    from laptime.doctor.show import show
    from laptime.record.files import finite
    from laptime.terminal import ignore_broken_pipe, replace_unencodable

    replace_unencodable()
    report = examine(seconds, _note)
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
        raise UserError(f"--seconds {text}: must be a number from 1 on, like 10.")
    return seconds


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
