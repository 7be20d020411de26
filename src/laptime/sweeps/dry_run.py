"""What a sweep would do (`sweep.dry_run`): its runs, which of them stand already, and what they will take."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.sweeps.estimate import Estimate
from laptime.text import byte_size, counted, duration


@dataclass(frozen=True)
class Planned:
    """One run.

    Attributes:
        number: its directory's name.
        swept: what tells it from the others.
        decision: what becomes of it, in words.
        is_done: it is completed, nothing is to be done.
        estimate: what it will take; None: no record at hand tells.
    """

    number: int
    swept: str
    decision: str
    is_done: bool
    estimate: Estimate | None


def show(planned: Sequence[Planned], console: Console) -> None:
    """Print one row per run, and what all will take together."""
    table = Table(title=Text("Dry run: nothing is trained or written"), title_justify="left")
    for column in ("run", "what is swept", "what becomes of it", "time", "disk", "estimated from"):
        table.add_column(column, justify="right" if column in ("run", "time", "disk") else "left")
    for each in planned:
        time, disk, basis = "?", "?", "no record of such a run"
        if each.is_done:
            time, disk, basis = "", "", ""
        elif each.estimate is not None:
            time, disk, basis = duration(each.estimate.seconds), byte_size(each.estimate.num_bytes), each.estimate.basis
        table.add_row(*map(Text, (str(each.number), each.swept, each.decision, time, disk, basis)))
    console.print(table)
    todo = [each for each in planned if not each.is_done]
    guesses = [each.estimate for each in todo if each.estimate is not None]
    words = f"{counted(len(todo), 'run')} to do of {len(planned)}"
    if guesses:
        seconds, num_bytes = sum(one.seconds for one in guesses), sum(one.num_bytes for one in guesses)
        words += f", about {duration(seconds)} and {byte_size(num_bytes)}"
        if len(guesses) < len(todo):
            words += f" for the {len(guesses)} that records tell of"
    elif todo:
        words += "; no record at hand tells how long: run one of them"
    console.print(Text(words))
