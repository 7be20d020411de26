"""Checks and measures what Laptime does on an accelerator, in at most 6 minutes.

    python benchmarks/accelerator.py             # on what torch finds: CUDA, ROCm,
                                                 # MPS or XPU
    python benchmarks/accelerator.py --rehearse  # the same on the CPU, to try the
                                                 # script itself
    python benchmarks/accelerator.py --only memory peak

Each part runs in a process of its own: where one fails, crashes or hangs, the next
ones are still tried. It writes accelerator.json and accelerator.md, a page to attach
to an issue, which names no user, machine or folder; both are written anew after each
part. It needs no network, and no installation: it tests the checkout that it lies in.

Exit code: 0 nothing failed, 1 a part failed, 2 there is no accelerator, an option is
wrong or nothing can be written, 128 + n ended by signal n (what was done until then is
written).
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


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Nothing has been done yet that could be kept."""
    os._exit(128 + signum)


for _signum in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_signum) is not signal.SIG_IGN:
        signal.signal(_signum, _leave)

# This checkout's Laptime, not another one that may be installed; here and in the processes that are started.
_SRC = str(Path(__file__).resolve().parents[1] / "src")
sys.path.insert(0, _SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_SRC, os.environ.get("PYTHONPATH"))))

from laptime.record.files import now  # noqa: E402
from laptime.runner import fresh_processes  # noqa: E402
from laptime.terminal import ignore_broken_pipe  # noqa: E402
from selftest import page, processes  # noqa: E402
from selftest.part import Result, Setting  # noqa: E402
from selftest.parts import PARTS  # noqa: E402

# So many seconds before the limit no part is started any more, and that are kept for ending one.
_LAST_START_S, _KEPT_S = 5.0, 10.0
# How long a driver may take to say which devices there are.
_FOUND_WITHIN_S = 60.0


class _Ended(KeyboardInterrupt):
    """A signal ended the test."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.list:
        for part in _wanted(arguments):
            _say(f"{part.name:20} {part.about}")
        return 0
    with _signals_ignored():  # Ctrl-C also reaches the server that the parts are copied from
        fresh_processes.preload()
    try:
        kind, num_devices = (
            ("cpu", 1) if arguments.rehearse else processes.ask(page.accelerator, limit_s=_FOUND_WITHIN_S)
        )
    except RuntimeError as error:
        print(f"error: torch can't say which devices there are: {error}. Is the driver in order?", file=sys.stderr)
        return 2
    if kind is None:
        print(
            "error: torch finds no accelerator here. --rehearse runs the same parts on the CPU; "
            "python -m laptime.doctor says what this torch was built for.",
            file=sys.stderr,
        )
        return 2
    out = Path(arguments.out or f"accelerator-{kind}-{time.strftime('%Y-%m-%d-%H%M%S')}")
    if (out / "accelerator.json").exists():
        print(f"error: --out {out}: holds results already. Name another folder.", file=sys.stderr)
        return 2
    try:
        page.make_folder(out)
        return _test(kind, num_devices, arguments, out)
    except page.CannotWrite as error:
        print(f"error: --out {out}: {error}. Name another folder.", file=sys.stderr)
        return 2


def _test(kind: str, num_devices: int, arguments: argparse.Namespace, out: Path) -> int:
    began, ended_by = now(), 0
    results: list[Result] = []
    tested = processes.ask(page.machine, kind, limit_s=_FOUND_WITHIN_S)
    work = Path(tempfile.mkdtemp(prefix="laptime-accelerator-"))
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _end)
    try:
        for part in _wanted(arguments):
            left = 60 * arguments.minutes - _KEPT_S - (time.monotonic() - _BEGIN)
            if left < _LAST_START_S:
                results.append(Result(part.name, part.about, "skipped", f"{arguments.minutes:g} minutes were over"))
                _say(_line(results[-1]))
                continue
            _say(f"{part.name:20} ", end="")
            setting = Setting(kind, num_devices, arguments.rehearse, str(work / part.name))
            results.append(processes.run(part, setting, min(part.limit_s, left)))
            page.write(out, began, arguments.rehearse, tested, results, complete=False)
            _say(_line(results[-1])[21:])
    except _Ended as end:
        ended_by = end.signum
        _say("ended by a signal")
    finally:
        with _signals_ignored():
            shutil.rmtree(work, ignore_errors=True)
            page.write(out, began, arguments.rehearse, tested, results, complete=not ended_by)
    _say(f"\n{page.summary(results)}\nWritten: {out / 'accelerator.json'} and {out / 'accelerator.md'}")
    if not arguments.rehearse:
        _say("To share the results, attach both files to an issue: see docs/hardware.md.")
    if ended_by:
        return 128 + ended_by
    return int(any(result.status == "fail" for result in results))


def _line(result: Result) -> str:
    why = f"  {page.public(result.why)}" if result.why else ""
    return f"{result.name:20} {result.status:8} {result.wall_s:5.1f} s{why}"


def _say(text: str, end: str = "\n") -> None:
    """Print for whoever still reads; the test goes on in any case."""
    try:
        with ignore_broken_pipe():
            print(text, end=end, flush=True)
    except OSError:  # a full disk: what is left in the buffer must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Ended(signum)


class _signals_ignored:
    """Neither Ctrl-C nor SIGTERM within."""

    def __enter__(self) -> None:
        self._before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


def _wanted(arguments: argparse.Namespace) -> list:  # type: ignore[type-arg]
    names = [name for each in arguments.only or [] for name in each]
    return [part for part in PARTS if not names or part.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="try the script itself: the CPU is the accelerator")
    parser.add_argument(
        "--only", nargs="+", type=_names, metavar="PART", help="only these parts, in their usual order; see --list"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the parts and what they try")
    parser.add_argument("--minutes", type=_minutes, default=6.0, help="the most that it may take; default: 6")
    parser.add_argument("--out", type=_folder, metavar="FOLDER", help="where to write; default: accelerator-KIND-TIME")
    return parser


def _names(text: str) -> list[str]:
    known = [part.name for part in PARTS]
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no part is called {name}; --list names them")
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
