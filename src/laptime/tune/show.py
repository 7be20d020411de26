"""What was found, on the terminal: tables and the line to go on with on stdout, progress on stderr."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.command_line import program
from laptime.terminal import relative, wide_console
from laptime.text import byte_size
from laptime.tune.batch_size import Found, Trial
from laptime.tune.lr import SKIPPED_STEPS, RangeTest

_ENDED_BY = {
    "memory": "{too_large} does not fit into memory",
    "data": "the whole training set",
    "time": "larger ones would have taken longer than --limit",
}


def trial(done: Trial) -> None:
    """One line of progress."""
    print(f"batch size {done.batch_size:,}: {_result(done)}", file=sys.stderr, flush=True)


def _result(done: Trial) -> str:
    return done.refused or f"{done.samples_per_s:,.0f} samples/s, {_gigabytes(done.memory_bytes)}"


def batch_sizes(found: Found, typed: Sequence[str]) -> None:
    """Print every size that was tried, which of them to use, and how to measure that."""
    console = wide_console()
    console.print(
        Text(f"laptime: batch sizes for {found.of_what}, {found.device.used} ({found.device.name})"), soft_wrap=True
    )
    table = Table()
    for column in ("batch size", "ms per step", "samples/s", "peak memory", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for each in sorted(found.trials, key=lambda each: each.batch_size):
        remarks = [each.refused] if each.refused else []
        if each.batch_size == found.largest:
            remarks.append("largest that fits" if found.ended_by == "memory" else "largest tried")
        if each.batch_size == found.fast:
            remarks.append("about as fast as the fastest")
        table.add_row(
            f"{each.batch_size:,}",
            "" if each.step_s is None else f"{1e3 * each.step_s:,.2f}",
            "" if each.samples_per_s is None else f"{each.samples_per_s:,.0f}",
            "" if each.refused else _gigabytes(each.memory_bytes),
            "; ".join(remarks),
        )
    console.print(table)
    too_large = min((each.batch_size for each in found.trials if not each.fits), default=None)
    ended_by = _ENDED_BY[found.ended_by].format(too_large=too_large)
    budget = "" if found.budget_bytes is None else f"; up to {_gigabytes(found.budget_bytes)} may be used"
    _line(console, "Largest", f"training.batch_size={found.largest} ({ended_by}{budget})")
    _line(console, "Fast", f"training.batch_size={found.fast}, the smallest within 5% of the most samples/s")
    if found.quality.reasons:
        _line(console, "Quality", f"{found.quality.grade}: {'; '.join(found.quality.reasons)}")
    around = sorted({each.batch_size for each in found.trials if each.fits and found.fast <= 4 * each.batch_size})[:4]
    sweep = f"training.batch_size={','.join(map(str, around))}"
    _line(console, "Measure it", _command([*typed, sweep], sweep=len(around) > 1))
    _line(
        console,
        "Mind",
        "a larger batch makes fewer steps of an epoch: it may learn less, or want a larger optimizer.lr",
    )


def lr(tested: RangeTest, typed: Sequence[str], plot: Path | None) -> None:
    """Print where the loss fell, and the line to train with."""
    console = wide_console()
    console.print(
        Text(f"laptime: learning rates for {tested.of_what}, {tested.device.used} ({tested.device.name})"),
        soft_wrap=True,
    )
    table = Table()
    for column in ("step", "lr", "loss", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    steps = range(SKIPPED_STEPS, len(tested.lrs))
    remarks: dict[int, list[str]] = {step: [] for step in [*steps[::10], steps[-1]]}
    remarks.setdefault(tested.lrs.index(tested.suggested), []).append("falls most steeply")
    remarks.setdefault(min(steps, key=lambda step: tested.losses[step]), []).append("lowest")
    if tested.ended_early:
        remarks[steps[-1]].append("ended here: it grew too large")
    for step, remark in sorted(remarks.items()):
        table.add_row(str(step), f"{tested.lrs[step]:.2g}", f"{tested.losses[step]:.4f}", "; ".join(remark))
    console.print(table)
    _line(console, "Suggested", f"optimizer.lr={tested.suggested:.2g}, where the loss falls most steeply")
    _line(console, "Train", _command([*typed, f"optimizer.lr={tested.suggested:.2g}"]))
    if plot is not None:
        _line(console, "Written", str(relative(plot)))
    _line(console, "Mind", "a start for a search, not its end: what the loss does in its first steps")


def _command(overrides: Sequence[str], sweep: bool = False) -> str:
    return f"{program('train')} {shlex.join([*(['-m'] if sweep else []), *overrides])}"


def _line(console: Console, name: str, text: str) -> None:
    console.print(Text(f"{name:<12} {text}"), soft_wrap=True)


def _gigabytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else byte_size(num_bytes, "GB", 2)
