"""The command `laptime watch`: a live view of a sweep or a run, read from its files."""

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

from laptime import starting
from laptime.command_line import Parser, run_command
from laptime.errors import UserError, exit_code_of, ignore_broken_pipe
from laptime.record.directory import expanded
from laptime.record.files import RUN_FILE, SWEEP_FILE
from laptime.record.latest import newest
from laptime.sweeps.notify import notify
from laptime.text import duration
from laptime.watch.status import RunStatus, SweepStatus, Watcher

_STYLES = {"completed": "green", "running": "cyan", "failed": "red", "dead": "red", "interrupted": "yellow"}
# Maximum number of rows shown for a long sweep. The runs that started last take precedence over waiting runs.
_MAX_ROWS = 30
# A sweep checks all its jobs first, so its directory appears some seconds after its start.
_WAIT_S = 15
_ABOUT = """\
Shows the progress of a sweep or a run, and what went wrong. Reads only its
files, so it can run in another terminal or on another machine that shares the
folder. Ends when the sweep or the run ends."""
_EXAMPLES = {
    "latest": "what was started last",
    "multirun/2026-11-22/15-10-40 --once": "",
    "latest --notify 'echo \"$LAPTIME_MESSAGE\" | mail me'": "",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 if all runs completed, 1 if some did not, 2 for a mistake in the arguments, 130 for
    Ctrl-C."""
    return exit_code_of(lambda: _watch(make_parser().parse_args(arguments)))


def make_parser() -> Parser:
    parser = Parser("watch", _ABOUT, _EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="a sweep or run directory; latest: the one started last")
    parser.add_argument("--once", action="store_true", help="show the current state and exit")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between updates (default: 1)")
    parser.add_argument(
        "--notify",
        metavar="COMMAND",
        help="shell command to run when a run fails or dies, and at the end; its environment has LAPTIME_EVENT, "
        "LAPTIME_DIR and LAPTIME_MESSAGE",
    )
    return parser


def _watch(args: argparse.Namespace) -> int:
    from laptime.terminal import replace_unencodable, wide_console

    replace_unencodable()
    if not 0.1 <= args.interval <= 3600:
        raise UserError(f"--interval {args.interval}: must be between 0.1 and 3600 seconds.")
    watcher = Watcher(_directory(args.folder, waits=not args.once))
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
        last_status: dict[int | None, str] = {}
        while True:
            for run in seen.runs:
                if run.status == last_status.get(run.number, "waiting"):
                    continue
                last_status[run.number] = run.status
                message = f"{_name(run)}: {run.error or run.status}"
                if run.status in ("failed", "dead"):
                    notify(args.notify, "run-failed", seen.path, message)
                if live is None:  # output goes to a file or a pipe: one line per change
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
        from laptime.sweeps.resume import resume_command  # loads Hydra

        if (to_resume := resume_command(seen.path)) is not None:
            with ignore_broken_pipe():
                print(f"Resume with: {to_resume}")
    message = f"{seen.count('completed')} of {len(seen.runs)} runs completed"
    notify(args.notify, "sweep-failed" if code else "sweep-completed", seen.path, message)
    return code


def _name(run: RunStatus) -> str:
    return f"run {run.number} ({run.overrides})" if run.number is not None else "the run"


def _directory(folder: str, waits: bool) -> Path:
    """Return the sweep or run directory that the argument names.

    Args:
        waits: whether `latest` waits some seconds for a sweep or run to start, if nothing is running.
    """
    if folder != "latest":
        path = expanded("folder", folder)
        if not (path / RUN_FILE).is_file() and not (path / SWEEP_FILE).is_file():
            problem = f"has no {RUN_FILE} or {SWEEP_FILE}" if path.is_dir() else "there is no such directory"
            raise UserError(f"{folder}: {problem}. Give a sweep or run directory, or latest.")
        return path
    newest_path = _newest()
    if waits and (newest_path is None or Watcher(newest_path).look().is_over):
        print(f"nothing is running: waiting {_WAIT_S} s for a sweep or run to start", file=sys.stderr)
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline and _newest() == newest_path:
            time.sleep(0.2)
        newest_path = _newest()
    if newest_path is None:
        raise UserError("latest: there is no sweep in multirun/ and no run in outputs/.")
    return newest_path


def _newest() -> Path | None:
    return next(iter(newest()), None)


def _exit_code(seen: SweepStatus) -> int:
    """Return 1 if a run failed or will never start, otherwise 0."""
    starting.hand_over()
    has_failed = seen.count("failed", "dead", "interrupted") or (seen.is_over and seen.count("waiting"))
    return 1 if has_failed else 0


def _epochs_cell(run: RunStatus) -> str:
    if run.num_epochs_done is None:
        return ""
    return str(run.num_epochs_done) if run.num_epochs is None else f"{run.num_epochs_done}/{run.num_epochs}"


def view(seen: SweepStatus) -> Group:
    """Return what the terminal shows for one state of the sweep or run."""
    table = Table()
    for column in ("run", "overrides", "status", "epochs", "epoch time", "time"):
        is_number = column in ("run", "epochs", "epoch time", "time")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    started = [run for run in seen.runs if run.status != "waiting"]
    waiting = [run for run in seen.runs if run.status == "waiting"]
    shown = started[-_MAX_ROWS:]
    shown += waiting[: max(0, _MAX_ROWS - len(shown))]
    for run in shown:
        table.add_row(
            Text("" if run.number is None else str(run.number)),
            Text(run.overrides),
            Text(run.status, style=_STYLES.get(run.status, "")),
            Text(_epochs_cell(run)),
            Text("" if run.epoch_time_s is None else f"{run.epoch_time_s:.3f} s"),
            Text("" if run.age_s is None else duration(run.age_s)),
        )
    # The last log line of running runs, and the errors of failed ones.
    lines = [
        Text(f"{'' if run.number is None else f'run {run.number}: '}{run.error or run.last_line}", overflow="fold")
        for run in shown
        if run.status in ("running", "failed", "dead", "interrupted") and (run.error or run.last_line)
    ]
    counts = [f"{seen.count(status)} {status}" for status in _STYLES if seen.count(status)]
    if seen.count("waiting"):
        counts.append(f"{seen.count('waiting')} {'not started' if seen.is_over else 'waiting'}")
    time_left = f", about {duration(seen.time_left_s)} left" if seen.time_left_s is not None else ""
    hidden = len(seen.runs) - len(shown)
    not_shown = f" ({hidden} not shown)" if hidden else ""
    summary = f"{', '.join(counts) or 'no run yet'}{not_shown}{time_left}"
    state = "ended" if seen.is_over else "running"
    return Group(Text(f"{seen.path}: {state}"), table, *lines, Text(summary))


if __name__ == "__main__":
    run_command(main)
