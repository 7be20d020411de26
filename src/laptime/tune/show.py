"""Output of tune: tables and the next command on stdout, progress on stderr."""

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
from laptime.tune.batch_size import BatchSizeResult, Trial
from laptime.tune.lr import SKIPPED_STEPS, RangeTest

_ENDED_BY = {
    "memory": "{too_large} does not fit into memory",
    "data": "the whole training set",
    "time": "larger ones would exceed --limit",
}


def trial(done: Trial) -> None:
    """Print one line of progress about a trial."""
    print(f"batch size {done.batch_size:,}: {_result(done)}", file=sys.stderr, flush=True)


def _result(done: Trial) -> str:
    return done.refused or f"{done.samples_per_s:,.0f} samples/s, {_gigabytes(done.memory_bytes)}"


def batch_sizes(result: BatchSizeResult, train_arguments: Sequence[str]) -> None:
    """Print every batch size that was tried, which to use, and the command that measures them."""
    console = wide_console()
    console.print(
        Text(f"laptime: batch sizes for {result.subject}, {result.device.used} ({result.device.name})"), soft_wrap=True
    )
    table = Table()
    for column in ("batch size", "ms per step", "samples/s", "peak memory", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for tried in sorted(result.trials, key=lambda tried: tried.batch_size):
        remarks = [tried.refused] if tried.refused else []
        if tried.batch_size == result.largest:
            remarks.append("largest that fits" if result.ended_by == "memory" else "largest tried")
        if tried.batch_size == result.fast:
            remarks.append("about as fast as the fastest")
        table.add_row(
            f"{tried.batch_size:,}",
            "" if tried.step_s is None else f"{1e3 * tried.step_s:,.2f}",
            "" if tried.samples_per_s is None else f"{tried.samples_per_s:,.0f}",
            "" if tried.refused else _gigabytes(tried.memory_bytes),
            "; ".join(remarks),
        )
    console.print(table)
    too_large = min((tried.batch_size for tried in result.trials if not tried.fits), default=None)
    ended_by = _ENDED_BY[result.ended_by].format(too_large=too_large)
    budget = "" if result.budget_bytes is None else f"; up to {_gigabytes(result.budget_bytes)} may be used"
    _line(console, "Largest", f"training.batch_size={result.largest} ({ended_by}{budget})")
    _line(
        console, "Fast", f"training.batch_size={result.fast}, the smallest with at least 95% of the highest throughput"
    )
    if result.quality.reasons:
        _line(console, "Quality", f"{result.quality.grade}: {'; '.join(result.quality.reasons)}")
    around = sorted(
        {tried.batch_size for tried in result.trials if tried.fits and result.fast <= 4 * tried.batch_size}
    )[:4]
    sweep = f"training.batch_size={','.join(map(str, around))}"
    _line(console, "Next", _command([*train_arguments, sweep], sweep=len(around) > 1))
    _line(
        console,
        "Note",
        "a larger batch means fewer steps per epoch: the model may learn less, or need a larger optimizer.lr",
    )


def lr(tested: RangeTest, train_arguments: Sequence[str], plot: Path | None) -> None:
    """Print the loss by learning rate, and the command to train with."""
    console = wide_console()
    console.print(
        Text(f"laptime: learning rates for {tested.subject}, {tested.device.used} ({tested.device.name})"),
        soft_wrap=True,
    )
    table = Table()
    for column in ("step", "lr", "loss", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    steps = range(SKIPPED_STEPS, len(tested.lrs))
    remarks: dict[int, list[str]] = {step: [] for step in [*steps[::10], steps[-1]]}
    remarks.setdefault(tested.lrs.index(tested.suggested), []).append("falls fastest")
    remarks.setdefault(min(steps, key=lambda step: tested.losses[step]), []).append("lowest")
    if tested.ended_early:
        remarks[steps[-1]].append("stopped: the loss grew too large")
    for step, remark in sorted(remarks.items()):
        table.add_row(str(step), f"{tested.lrs[step]:.2g}", f"{tested.losses[step]:.4f}", "; ".join(remark))
    console.print(table)
    _line(console, "Suggested", f"optimizer.lr={tested.suggested:.2g}, where the loss falls fastest")
    _line(console, "Next", _command([*train_arguments, f"optimizer.lr={tested.suggested:.2g}"]))
    if plot is not None:
        _line(console, "Written", str(relative(plot)))
    _line(console, "Note", "a starting point for a search, because it only looks at the first steps")


def _command(overrides: Sequence[str], sweep: bool = False) -> str:
    return f"{program('train')} {shlex.join([*(['-m'] if sweep else []), *overrides])}"


def _line(console: Console, name: str, text: str) -> None:
    console.print(Text(f"{name:<12} {text}"), soft_wrap=True)


def _gigabytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else byte_size(num_bytes, "GB", 2)
