"""python -m laptime.watch: a live view of a sweep or a run, from its files alone."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from laptime.errors import UserError, exit_code_of
from laptime.record.directory import expanded
from laptime.record.files import RUN_FILE, SWEEP_FILE
from laptime.record.latest import newest
from laptime.sweeps.notify import notify
from laptime.text import duration
from laptime.watch.status import RunStatus, SweepStatus, Watcher

_STYLES = {"completed": "green", "running": "cyan", "failed": "red", "dead": "red", "interrupted": "yellow"}
# Of a long sweep so many rows are shown, the latest that have started before those that wait.
_MOST_ROWS = 30
# A sweep's directory is there some seconds after its start: all its jobs are checked first.
_WAIT_S = 15


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all runs completed, 1 some did not, 2 a mistake in what was typed, 130 Ctrl-C."""
    args = _parser().parse_args(arguments)
    return exit_code_of(lambda: _watch(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m laptime.watch", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="a sweep's directory or a run's; latest: the one started last")
    parser.add_argument("--once", action="store_true", help="show how it is now, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="look again after so many seconds")
    parser.add_argument(
        "--notify",
        metavar="COMMAND",
        help="for the shell, when a run fails or dies and at the end; it finds LAPTIME_EVENT, LAPTIME_DIR and "
        "LAPTIME_MESSAGE in its environment",
    )
    return parser


def _watch(args: argparse.Namespace) -> int:
    from laptime.terminal import ignore_broken_pipe, relative, replace_unencodable, wide_console

    replace_unencodable()
    if not 0.1 <= args.interval <= 3600:
        raise UserError(f"--interval {args.interval}: must lie between 0.1 and 3600 seconds.")
    watcher = Watcher(_found(args.folder, waits=not args.once))
    console = wide_console()
    if args.once:
        seen = watcher.look()
        with ignore_broken_pipe():
            console.print(view(seen))
        return _exit_code(seen)
    seen = watcher.look()
    with (
        ignore_broken_pipe(),
        Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live,
    ):
        before: dict[int | None, str] = {}
        while True:
            for run in seen.runs:
                if run.status == before.get(run.number, "waiting"):
                    continue
                before[run.number] = run.status
                message = f"{_name(run)}: {run.error or run.status}"
                if run.status in ("failed", "dead"):
                    notify(args.notify, "run-failed", seen.path, message)
                if live is None:  # into a file or a pipe: a line for everything that happens
                    console.print(Text(f"[{datetime.now():%H:%M:%S}] {message}"), soft_wrap=True)
                    sys.stdout.flush()
            if live is not None:
                live.update(view(seen), refresh=True)
            if seen.is_over:
                break
            time.sleep(args.interval)
            seen = watcher.look()
        if live is None:
            console.print(view(seen))
    code = _exit_code(seen)
    if code and (seen.path / SWEEP_FILE).is_file():
        with ignore_broken_pipe():
            print(f"To finish it: python train.py sweep.resume={relative(seen.path)}")
    message = f"{seen.count('completed')} of {len(seen.runs)} runs completed"
    notify(args.notify, "sweep-failed" if code else "sweep-completed", seen.path, message)
    return code


def _name(run: RunStatus) -> str:
    return f"run {run.number} ({run.swept})" if run.number is not None else "the run"


def _found(folder: str, waits: bool) -> Path:
    """The directory that is meant.

    Args:
        waits: `latest` is one that goes on; where none does, the next that starts soon, or else the last one.
    """
    if folder != "latest":
        path = expanded("folder", folder)
        if not (path / RUN_FILE).is_file() and not (path / SWEEP_FILE).is_file():
            what = "is neither a sweep's directory nor a run's" if path.is_dir() else "there is no such directory"
            raise UserError(f"{folder}: {what}. Name one, or latest.")
        return path
    found = _newest()
    if waits and (found is None or Watcher(found).look().is_over):
        print(f"nothing is running: waiting {_WAIT_S} s for something that starts", file=sys.stderr)
        give_up = time.monotonic() + _WAIT_S
        while time.monotonic() < give_up and _newest() == found:
            time.sleep(0.2)
        found = _newest()
    if found is None:
        raise UserError("latest: there is no sweep below multirun/, and no run below outputs/.")
    return found


def _newest() -> Path | None:
    return next(iter(newest()), None)


def _exit_code(seen: SweepStatus) -> int:
    """0 as long as nothing went wrong."""
    wrong = seen.count("failed", "dead", "interrupted") or (seen.is_over and seen.count("waiting"))
    return 1 if wrong else 0


def view(seen: SweepStatus) -> Group:
    """The picture of one moment."""
    table = Table()
    for column in ("run", "what is swept", "status", "epochs", "epoch time", "time"):
        right = column in ("run", "epochs", "epoch time", "time")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    started = [run for run in seen.runs if run.status != "waiting"]
    waiting = [run for run in seen.runs if run.status == "waiting"]
    shown = started[-_MOST_ROWS:]
    shown += waiting[: max(0, _MOST_ROWS - len(shown))]
    for run in shown:
        table.add_row(
            Text("" if run.number is None else str(run.number)),
            Text(run.swept),
            Text(run.status, style=_STYLES.get(run.status, "")),
            Text("" if run.done is None else str(run.done) if run.epochs is None else f"{run.done}/{run.epochs}"),
            Text("" if run.epoch_time_s is None else f"{run.epoch_time_s:.3f} s"),
            Text("" if run.age_s is None else duration(run.age_s)),
        )
    # What goes on, or went wrong, in the words of the log.
    lines = [
        Text(f"{'' if run.number is None else f'run {run.number}: '}{run.error or run.last_line}", overflow="fold")
        for run in shown
        if run.status in ("running", "failed", "dead", "interrupted") and (run.error or run.last_line)
    ]
    words = [f"{seen.count(status)} {status}" for status in _STYLES if seen.count(status)]
    if seen.count("waiting"):
        words.append(f"{seen.count('waiting')} {'not started' if seen.is_over else 'waiting'}")
    left = f", about {duration(seen.time_left_s)} left" if seen.time_left_s is not None else ""
    hidden = len(seen.runs) - len(shown)
    more = f" ({hidden} not shown)" if hidden else ""
    state = "over" if seen.is_over else "going on"
    return Group(Text(f"{seen.path}: {state}"), table, *lines, Text(f"{', '.join(words) or 'no run yet'}{more}{left}"))


if __name__ == "__main__":
    sys.exit(main())
