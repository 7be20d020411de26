"""Checks and measures everything that Laptime does on an accelerator, in at most 6 minutes.

    python benchmarks/accelerator.py                            # on what torch finds: CUDA, ROCm, MPS or XPU
    python benchmarks/accelerator.py --rehearse                 # the same on the CPU
    python benchmarks/accelerator.py --only memory peak         # some parts; --list names them

Each part runs in a process of its own: where one fails, crashes or hangs, the next ones are still tried. Written are
accelerator.json and accelerator.md, a page to attach to an issue: it names no user, machine or folder. Both are written
anew after each part. No network is needed, and no installation: it tests the checkout that it lies in.

Exit code: 0 nothing failed, 1 a part failed, 2 there is no accelerator, an option is wrong or nothing can be written,
130 Ctrl-C (what was done until then is written).
"""

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# This checkout's Laptime, not another one that may be installed; here and in the processes that are started.
_SRC = str(Path(__file__).resolve().parents[1] / "src")
sys.path.insert(0, _SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_SRC, os.environ.get("PYTHONPATH"))))

from laptime import fresh_processes  # noqa: E402
from laptime.record import now  # noqa: E402
from selftest import page, processes  # noqa: E402
from selftest.part import Result, Setting  # noqa: E402
from selftest.parts import PARTS  # noqa: E402

# So many seconds before the limit no part is started any more.
_LAST_START_S = 5.0


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.list:
        print("\n".join(f"{part.name:20} {part.about}" for part in PARTS))
        return 0
    kind, num_devices = _found()
    if arguments.rehearse:
        kind, num_devices = "cpu", 1
    if kind is None:
        print(
            "error: torch finds no accelerator here. --rehearse runs the same parts on the CPU; "
            "python -m laptime.doctor says what this torch was built for.",
            file=sys.stderr,
        )
        return 2
    out = Path(arguments.out or f"accelerator-{kind}-{time.strftime('%Y-%m-%d-%H%M%S')}")
    try:
        page.make_folder(out)
        return _test(kind, num_devices, arguments, out)
    except page.CannotWrite as error:
        print(f"error: --out {out}: {error}. Name another folder.", file=sys.stderr)
        return 2


def _test(kind: str, num_devices: int, arguments: argparse.Namespace, out: Path) -> int:
    began, begin = now(), time.monotonic()
    wanted = [part for part in PARTS if arguments.only is None or part.name in arguments.only]
    # Ctrl-C also reaches the server that the parts are copied from, where it would only leave a traceback.
    heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)
    fresh_processes.load_ahead()
    signal.signal(signal.SIGINT, heeded)
    tested = page.machine(kind)
    work = Path(tempfile.mkdtemp(prefix="laptime-accelerator-"))
    results: list[Result] = []
    interrupted = False
    try:
        for part in wanted:
            left = 60 * arguments.minutes - (time.monotonic() - begin)
            if left < _LAST_START_S:
                results.append(Result(part.name, part.about, "skipped", f"{arguments.minutes:g} minutes were over"))
                continue
            print(f"{part.name:20} ", end="", flush=True)
            setting = Setting(kind, num_devices, arguments.rehearse, str(work / part.name))
            result = processes.run(part, setting, min(part.limit_s, left))
            results.append(result)
            page.write(out, began, arguments.rehearse, tested, results, complete=False)
            why = f"  {page.without_names(result.why)}" if result.why else ""
            print(f"{result.status:8} {result.wall_s:5.1f} s{why}", flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", flush=True)
    finally:
        page.write(out, began, arguments.rehearse, tested, results, complete=not interrupted)
        shutil.rmtree(work, ignore_errors=True)
    print(f"written to {out / 'accelerator.json'} and {out / 'accelerator.md'}")
    if interrupted:
        return 130
    return int(any(result.status == "fail" for result in results))


def _found() -> tuple[str | None, int]:
    """The accelerator's kind and how many of it there are."""
    import torch

    from laptime.device import available_accelerator

    kind = available_accelerator()
    return kind, torch.accelerator.device_count() if kind else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--rehearse", action="store_true", help="let the CPU stand in for the accelerator")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--minutes", type=_minutes, default=6.0, help="no longer than this; default: 6")
    parser.add_argument("--out", metavar="FOLDER", help="where to write; default: accelerator-KIND-TIME")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise ValueError
    return minutes


if __name__ == "__main__":
    sys.exit(main())
