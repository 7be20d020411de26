"""The report of an analysis: question, answer, tables, plots, methods, environment and the commands to repeat it."""

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, Template, select_autoescape
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from laptime.analysis.analyze import Analysis
from laptime.analysis.answer import answer, problems, question
from laptime.analysis.environment import hardware_rows, software_rows
from laptime.analysis.group import lap_word
from laptime.analysis.load import Run
from laptime.analysis.plots import MOST_FAMILIES, MOST_GROUPS
from laptime.analysis.table import Table
from laptime.analysis.tables import tables
from laptime.analysis.wording import source_of_steps
from laptime.command_line import program
from laptime.record.renamed import override_by_new_name
from laptime.text import counted, escape_control_chars

CAPTIONS = {
    "speedup": "Speedup over one process by number of ranks, and the fitted laws. Bars and band: 95% intervals.",
    "efficiency": "Scaling efficiency: speedup per rank. Bars: 95% intervals.",
    "overheads": "What a step consists of. Ideal is what it would take if ranks cost each other nothing.",
    "pareto": "What one objective costs in the other: every group, and those that no other beats in all objectives.",
    "throughput": "Throughput of every group, and of each of its repeats.",
    "steps": "What a step consists of, from {source}.",
    "epoch_times": "Every {lap} of every rank and repeat.",
    "loss": "Loss over {lap}s and over training time. Bands span the repeats.",
    "accuracy": "Accuracy over {lap}s and over training time. Bands span the repeats.",
    "resources": "Memory and CPU use, all ranks together.",
}

# Two plots side by side.
_PAIRS = ("loss", "accuracy", "resources")

_LIMIT = (
    "The limit is the fastest matrix product that a short probe finds on the same device, with the same precision, "
    "threads and ranks; floating-point operations are counted by torch's own counter."
)
_REPEAT = "A repeat is a process: runs that differ in the seed alone, on the same machine, with the same code and data."

METHODS = (
    "Quality: A, nothing was seen that would disturb a measurement; B, something may have; C, something surely has: "
    "other processes, stolen or throttled CPU time, a falling frequency, swapping, a battery, outliers, more threads "
    "than cores. A group's is the worst of its repeats'.",
    f"{_LIMIT} The parts of a step are measured in separate steps after the timed epochs, the device idle at every "
    "boundary: the mean of the steps between the quartiles.",
    "An epoch's time runs from asking for the first batch to the device-synchronised end of the last optimizer step; "
    "no validation, checkpointing or logging is in it. A run's epoch time is its slowest rank's. Warm-up epochs are "
    "not counted.",
    f"{_REPEAT} A figure is the median of the repeats' medians.",
    "Speedup is throughput (global samples/s) over the baseline's, which is right for strong and weak scaling alike. "
    "Scaling efficiency is speedup per rank.",
    "Intervals are 95% percentile bootstrap intervals (9,999 resamples) of the ratio of medians, both sides resampled "
    "over repeats (Efron and Tibshirani 1993). One repeat has no interval. From five repeats on they cover the "
    "truth in 92 to 98 of 100 simulated cases, with three in about 90.",
    "The serial fraction is Karp and Flatt's (1990). Amdahl's law (1967) and Gunther's universal scalability law "
    "(2007) are fitted by least squares; intervals of their parameters use Student's t, those of projections draw "
    "parameters as far as the data leave them open.",
    "A difference is tested with the two-sided Mann-Whitney test at 5%, exact for few repeats: four against four is "
    "the least that can decide.",
    "Results agree where the difference of test accuracies is within the spread of the repeats or what the size of the "
    "test set leaves open (1.96 standard errors), and the difference of training losses within the spread of the "
    "repeats.",
)


def methods(analysis: Analysis) -> tuple[str, ...]:
    """How it was measured, with what is in the laps of trainings that Laptime timed alone."""
    timed = [group for group in analysis.groups if not group.first.record.is_laptime_training]
    if not timed:
        return METHODS
    contents = dict.fromkeys((group.conditions.lap, group.first.record.lap.contents) for group in timed)
    laps = [f"A lap ({lap}): {escape_control_chars(words)}" for lap, words in contents if words]
    if len(timed) == len(analysis.groups):
        return (*_methods_of_timed(analysis), *laps)
    steps = "The parts of a step are from steps of the warm-up, where Laptime timed a training that is not its own."
    return (*METHODS, steps, *laps)


def _methods_of_timed(analysis: Analysis) -> list[str]:
    """How it was measured where Laptime trained in none of the runs; without what the report does not show."""
    quality, _, _, _, speedup, intervals, laws, test, _ = METHODS
    groups, is_scaled = analysis.groups, bool(analysis.families)
    found = [quality]
    if any(group.median("peak", "matmul_flop_per_s") for group in groups):
        found.append(_LIMIT)
    if any(group.median("breakdown", "step_s") for group in groups):
        found.append("The parts of a step are from steps of the warm-up lap.")
    found.append("A run's lap time is its slowest rank's. Warm-up laps are not counted.")
    found.append(f"{_repeat(analysis)} A figure is the median of the repeats' medians.")
    if is_scaled:
        found.append(speedup)
    elif analysis.comparisons:
        found.append("Speedup is throughput (global samples/s) over the baseline's.")
    if is_scaled or analysis.comparisons:
        found.append(intervals)
    if is_scaled:
        found.append(laws)
    if analysis.comparisons:
        found.append(test)
    return [*found, _AGREEMENT] if is_scaled or analysis.comparisons else found


def _repeat(analysis: Analysis) -> str:
    unknown = [run for run in analysis.runs if run.dataset.checksum is None]
    if not unknown:
        return _REPEAT
    which = "The data have" if len(unknown) == len(analysis.runs) else "Of some runs the data have"
    return (
        "A repeat is a process: runs that differ in the seed alone, on the same machine, with the same code. "
        f"{which} no checksum: they are not known to be the same."
    )


_AGREEMENT = (
    "Results agree where the difference of test accuracies is within the spread of the repeats or what the size of the "
    "test set, where it is known, leaves open (1.96 standard errors), and the difference of training losses within the "
    "spread of the repeats. Without test accuracies, validation accuracies are compared by the spread of the repeats."
)


def as_text(analysis: Analysis) -> str:
    """The report in plain text, 100 columns."""
    console = Console(width=110, record=True, file=io.StringIO(), color_system=None)
    console.print(Text("LAPTIME REPORT", style="bold"))
    console.print(Text("=" * 60))
    for part, rows in environment(analysis):
        console.print(Text(part, style="bold"))
        for name, value in rows:
            console.print(Text(f"  {name + ':':<12}{value}"), soft_wrap=True)
    print_analysis(analysis, console, ascii_only=True)
    console.print()
    console.print(Text("Commands"))
    for command in commands(analysis):
        console.print(Text(f"  {command}"), soft_wrap=True)
    return console.export_text()


def print_analysis(analysis: Analysis, console: Console, ascii_only: bool = False) -> None:
    """Print question, answer, tables and problems."""
    console.print()
    console.print(Text(question(analysis), style="bold"))
    console.print(Text(answer(analysis)))
    for table in tables(analysis):
        console.print()
        _print_table(table, console, box.ASCII2 if ascii_only else box.ROUNDED)
    for problem in problems(analysis):
        console.print()
        console.print(Text(f"Missing: {problem}", style="yellow"))


# Longer words are broken.
_WIDEST_WORD = 32
# Where all columns were narrower, rich shares the room out by itself.
_NARROWEST = 8


def _print_table(table: Table, console: Console, lines: box.Box) -> None:
    shown = RichTable(title=Text(table.title), title_justify="left", title_style="bold", box=lines)
    widths = _widths(table, console.width)
    places = list(widths)
    for place, width in widths.items():
        shown.add_column(Text(table.columns[place].head), overflow="fold", width=width)
    for row in table.rows:
        shown.add_row(*(Text(row.cells[place].text) for place in places))
    console.print(shown)
    for row in table.rows:
        sentences = [cell.text for cell in table.sentences(row)]
        if sentences:
            console.print(Text(f"{row.cells[0].text}: {'; '.join(sentences)}"))
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _widths(table: Table, width: int) -> dict[int, int | None]:
    """The columns that a terminal shows, by their places, and how wide: so that no word is broken, if that can be, for
    which optional columns are left out, the last first. None: the terminal is too narrow for it."""
    places = table.figures
    cells = {place: [table.columns[place].head, *(row.cells[place].text for row in table.rows)] for place in places}
    words = {place: [word for cell in cells[place] for word in cell.split()] for place in places}
    least = {place: min(max(map(len, words[place]), default=1), _WIDEST_WORD) for place in places}
    for place in reversed([place for place in places if table.columns[place].is_optional]):
        if _line(least) <= width:
            break
        del least[place]
    while _line(least) > width:  # words are broken after all, in as few columns as can be
        widest = max(least, key=lambda place: least[place])
        if least[widest] <= _NARROWEST:
            return dict.fromkeys(least)
        least[widest] -= 1
    widths = dict(least)
    longest = {place: max(map(len, cells[place])) for place in widths}
    while _line(widths) < width and (short := [place for place in widths if widths[place] < longest[place]]):
        widths[min(short, key=lambda place: widths[place] / longest[place])] += 1
    return dict(widths)


def _line(widths: Mapping[int, int]) -> int:
    """Characters of a line: columns, a space on both sides of each, and borders."""
    return 1 + sum(width + 3 for width in widths.values())


def as_markdown(analysis: Analysis, plots: Sequence[str]) -> str:
    """The report in Markdown, for an issue or a paper; its images lie in plots/."""
    lines = [f"# {_md(question(analysis))}", "", f"**{_md(answer(analysis))}**", ""]
    lines += [f"- Missing: {_md(problem)}" for problem in problems(analysis)]
    for table in tables(analysis):
        lines += ["", f"## {_md(table.title)}", ""]
        lines.append(f"| {' | '.join(_md(column.head) for column in table.columns)} |")
        lines.append("|" + "---|" * len(table.columns))
        lines += [f"| {' | '.join(_md(cell.text) for cell in row.cells)} |" for row in table.rows]
        lines += ["", *(f"{_md(note)}\n" for note in table.notes)]
    lines += ["## Plots", "", *([_omitted_note(analysis), ""] if _omitted_note(analysis) else [])]
    lines += [f"![{caption(name, analysis)}](plots/{name}.png)\n" for name in plots]
    lines += ["## Methods", "", *(f"- {method}" for method in methods(analysis)), "", "## Environment"]
    for part, rows in environment(analysis):
        lines += ["", f"### {_md(part)}", "", *(f"- {_md(name)}: {_md(value)}" for name, value in rows)]
    lines += ["", "## Commands", "", *(f"    {command}" for command in commands(analysis)), ""]
    return "\n".join(lines)


def as_html(analysis: Analysis, plots: Mapping[str, bytes]) -> str:
    """The report as one HTML file that needs nothing else; whatever comes from a configuration or a path is escaped."""
    return _template().render(
        question=question(analysis),
        answer=answer(analysis),
        tables=tables(analysis),
        plots=[
            (caption(name, analysis), base64.b64encode(image).decode(), name in _PAIRS) for name, image in plots.items()
        ],
        left_out=_omitted_note(analysis),
        methods=methods(analysis),
        environment=environment(analysis),
        commands=commands(analysis),
        problems=problems(analysis),
    )


@cache
def _template() -> Template:
    source = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=select_autoescape(default=True, default_for_string=True)).from_string(source)


def caption(name: str, analysis: Analysis) -> str:
    """What a plot shows."""
    words = CAPTIONS[name if name in CAPTIONS else name.rpartition("_")[0]]
    return words.format(source=source_of_steps(analysis.groups), lap=lap_word(analysis.groups))


def environment(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where and with what the runs were made: titles, and beneath each what there is to tell, by name.

    A part per machine, and one for device, software, code and data, whose values stand side by side where runs differ.
    """
    if not analysis.runs:
        return []
    machines: dict[str, list[Run]] = {}
    for run in analysis.runs:
        machines.setdefault(repr((run.environment.hostname_hash, hardware_rows(run.environment))), []).append(run)
    parts = []
    for number, runs in enumerate(machines.values(), start=1):
        there = runs[0].environment
        name = there.hostname or there.hostname_hash
        title = f"Machine {number}: {name}, {counted(len(runs), 'run')}" if len(machines) > 1 else "Machine"
        parts.append((escape_control_chars(title), _printable(hardware_rows(there))))
    found: dict[str, list[str]] = {}
    for run in analysis.runs:
        for name, value in software_rows(run):
            if not value and not run.record.is_laptime_training:
                continue
            if value not in found.setdefault(name, []):
                found[name].append(value)
    software = _printable([(name, "; ".join(values)) for name, values in found.items()])
    started = [run.record.started_at for run in analysis.runs if run.record.started_at]
    if started:
        software.append(("Measured", f"{min(started)} to {max(started)} (UTC), {len(analysis.runs)} runs"))
    return [*parts, ("Device, software, code and data", software)]


def _printable(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, escape_control_chars(value)) for name, value in rows if value]


def commands(analysis: Analysis) -> list[str]:
    """The commands that made the runs, each once, by the keys of today, and the one that makes this report."""
    typed = [shlex.join(map(override_by_new_name, run.command)) for run in analysis.runs]
    again = f"{program('analyze')} {shlex.join(str(folder) for folder in analysis.folders)}"
    return [escape_control_chars(command) for command in dict.fromkeys([*typed, again]) if command]


def _omitted_note(analysis: Analysis) -> str:
    if len(analysis.groups) <= MOST_GROUPS and len(analysis.families) <= MOST_FAMILIES:
        return ""
    return (
        f"The plots show the first {MOST_GROUPS} of {len(analysis.groups)} groups and the first {MOST_FAMILIES} of "
        f"{len(analysis.families)} scaling families at most; the tables have all."
    )


def _md(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("*", "\\*").replace("_", "\\_").replace("`", "\\`").replace("\n", " ")
