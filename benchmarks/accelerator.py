"""Checks and measures what Laptime does on an accelerator, in at most 6 minutes.

    python benchmarks/accelerator.py             # on what torch finds: CUDA, ROCm,
                                                 # MPS or XPU
    python benchmarks/accelerator.py --rehearse  # the same on the CPU, to try the
                                                 # script itself
    python benchmarks/accelerator.py --only memory peak

Each part runs in its own process. If one fails, crashes or hangs, the next ones still
run. The script writes accelerator.json, and accelerator.md, a page to attach to an
issue. Neither names a user, a machine or a folder. Both are updated after each part.
The script needs no network and no installation: it tests the checkout that it is in.

Exit code: 0 nothing failed, 1 a part failed, 2 no accelerator, a wrong option or an
output folder that can't be written, 128 + n ended by signal n (with the results until
then).
"""

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

_BEGIN = time.monotonic()


def _exit_silently(signum: int, frame: FrameType | None) -> NoReturn:
    """End without cleaning up: there are no results yet."""
    os._exit(128 + signum)


for _signum in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_signum) is not signal.SIG_IGN:
        signal.signal(_signum, _exit_silently)

# Import this checkout's Laptime, not an installed one, in this process and in those that it starts.
_SRC = str(Path(__file__).resolve().parents[1] / "src")
sys.path.insert(0, _SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_SRC, os.environ.get("PYTHONPATH"))))

from laptime.errors import ignore_broken_pipe  # noqa: E402
from laptime.record.files import now  # noqa: E402
from laptime.runner import fresh_processes  # noqa: E402
from selftest import page, processes  # noqa: E402
from selftest.part import Result, Setting  # noqa: E402
from selftest.parts import PARTS  # noqa: E402

# A part starts only if it has at least this many seconds; and the seconds reserved for ending the last one.
_MIN_PART_S, _RESERVED_S = 5.0, 10.0
# How long a driver may take to list its devices.
_DETECTION_LIMIT_S = 60.0


class _SignalReceived(KeyboardInterrupt):
    """A signal asks the script to end."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.list:
        for part in _selected_parts(arguments):
            _print(f"{part.name:20} {part.about}")
        return 0
    with _signals_ignored():  # a terminal sends Ctrl-C also to the server that the parts are forked from
        fresh_processes.preload()
    try:
        kind, num_devices = (
            ("cpu", 1) if arguments.rehearse else processes.ask(page.accelerator, limit_s=_DETECTION_LIMIT_S)
        )
    except RuntimeError as error:
        print(f"error: torch can't list its devices: {error}. Check the driver.", file=sys.stderr)
        return 2
    if kind is None:
        print(
            "error: torch finds no accelerator on this machine. --rehearse runs the same parts on the CPU; "
            "laptime doctor shows which devices this build of torch supports.",
            file=sys.stderr,
        )
        return 2
    out = Path(arguments.out or f"accelerator-{kind}-{time.strftime('%Y-%m-%d-%H%M%S')}")
    if (out / "accelerator.json").exists():
        print(f"error: --out {out}: the folder already contains results. Name another folder.", file=sys.stderr)
        return 2
    try:
        page.make_folder(out)
        return _run_parts(kind, num_devices, arguments, out)
    except page.CannotWrite as error:
        print(f"error: --out {out}: {error}. Name another folder.", file=sys.stderr)
        return 2


def _run_parts(kind: str, num_devices: int, arguments: argparse.Namespace, out: Path) -> int:
    began, ended_by = now(), 0
    results: list[Result] = []
    machine = processes.ask(page.machine, kind, limit_s=_DETECTION_LIMIT_S)
    work = Path(tempfile.mkdtemp(prefix="laptime-accelerator-"))
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _end)
    try:
        for part in _selected_parts(arguments):
            remaining_s = 60 * arguments.minutes - _RESERVED_S - (time.monotonic() - _BEGIN)
            if remaining_s < _MIN_PART_S:
                results.append(Result(part.name, part.about, "skipped", f"{arguments.minutes:g} minutes were over"))
                _print(_line(results[-1]))
                continue
            _print(f"{part.name:20} ", end="")
            setting = Setting(kind, num_devices, arguments.rehearse, str(work / part.name))
            results.append(processes.run(part, setting, min(part.limit_s, remaining_s)))
            page.write(out, began, arguments.rehearse, machine, results, complete=False)
            _print(_line(results[-1])[21:])
    except _SignalReceived as end:
        ended_by = end.signum
        _print("ended by a signal")
    finally:
        with _signals_ignored():
            shutil.rmtree(work, ignore_errors=True)
            page.write(out, began, arguments.rehearse, machine, results, complete=not ended_by)
    _print(f"\n{page.summary(results)}\nWritten: {out / 'accelerator.json'} and {out / 'accelerator.md'}")
    if not arguments.rehearse:
        _print("To share the results, attach both files to an issue: see docs/hardware.md.")
    if ended_by:
        return 128 + ended_by
    return int(any(result.status == "fail" for result in results))


def _line(result: Result) -> str:
    reason = f"  {page.public(result.why)}" if result.why else ""
    return f"{result.name:20} {result.status:8} {result.wall_s:5.1f} s{reason}"


def _print(text: str, end: str = "\n") -> None:
    """Print. The test continues if the output can't be written."""
    try:
        with ignore_broken_pipe():
            print(text, end=end, flush=True)
    except OSError:  # the disk is full: writing the rest of the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise _SignalReceived(signum)


class _signals_ignored:
    """Ignores SIGINT and SIGTERM inside the block."""

    def __enter__(self) -> None:
        self._handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)


def _selected_parts(arguments: argparse.Namespace) -> list:  # type: ignore[type-arg]
    selected = {name for names in arguments.only or [] for name in names}
    return [part for part in PARTS if not selected or part.name in selected]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="try the script on the CPU in place of an accelerator")
    parser.add_argument(
        "--only", nargs="+", type=_names, metavar="PART", help="run only these parts, in their usual order; see --list"
    )
    parser.add_argument("--list", action="store_true", help="print the name and purpose of each part")
    parser.add_argument("--minutes", type=_minutes, default=6.0, help="time limit in minutes; default: 6")
    parser.add_argument("--out", type=_folder, metavar="FOLDER", help="output folder; default: accelerator-KIND-TIME")
    return parser


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in {part.name for part in PARTS}:
            raise argparse.ArgumentTypeError(f"{name} is not a part; --list shows the parts")
    return names


def _minutes(text: str) -> float:
    with suppress(ValueError):
        if 0 < (minutes := float(text)) < math.inf:
            return minutes
    raise argparse.ArgumentTypeError(f"{text}: must be a number of minutes above 0")


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must name a folder")
    return text


if __name__ == "__main__":
    sys.exit(main())
