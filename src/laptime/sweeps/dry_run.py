"""Prints the table of a dry run (`sweep.dry_run`): each run, the action, and the estimated time and disk space."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.sweeps.estimate import Estimate
from laptime.text import byte_size, counted, duration


@dataclass(frozen=True)
class DryRunRow:
    """The row of one run.

    Attributes:
        number: the number of the run.
        swept: the overrides in which it differs from the other runs.
        action: a description of what would be done with it.
        is_done: whether it is completed, so that nothing would be done.
        estimate: time and disk space; None: no similar run is known.
    """

    number: int
    swept: str
    action: str
    is_done: bool
    estimate: Estimate | None


def show(rows: Sequence[DryRunRow], console: Console) -> None:
    """Print one line per run, then the totals."""
    table = Table(title=Text("Dry run: nothing is trained or written"), title_justify="left")
    for column in ("run", "overrides", "action", "time", "disk", "estimated from"):
        table.add_column(column, justify="right" if column in ("run", "time", "disk") else "left")
    for row in rows:
        time, disk, basis = "?", "?", "no similar run found"
        if row.is_done:
            time, disk, basis = "", "", ""
        elif row.estimate is not None:
            time, disk, basis = duration(row.estimate.seconds), byte_size(row.estimate.num_bytes), row.estimate.basis
        table.add_row(*map(Text, (str(row.number), row.swept, row.action, time, disk, basis)))
    console.print(table)
    todo = [row for row in rows if not row.is_done]
    estimates = [row.estimate for row in todo if row.estimate is not None]
    total = f"{len(todo)} of {counted(len(rows), 'run')} to do"
    if estimates:
        seconds = sum(estimate.seconds for estimate in estimates)
        num_bytes = sum(estimate.num_bytes for estimate in estimates)
        total += f", about {duration(seconds)} and {byte_size(num_bytes)}"
        if len(estimates) < len(todo):
            total += f" for the {len(estimates)} of them with an estimate"
    elif todo:
        total += "; no time estimate, because no similar run was found. Run one of them first"
    console.print(Text(total))
