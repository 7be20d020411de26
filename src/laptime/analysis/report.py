"""Makes the report of an analysis: question, answer, tables, plots, methods, environment and commands."""

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
from laptime.analysis.group import all_scores, lap_word
from laptime.analysis.load import Run
from laptime.analysis.table import Table
from laptime.analysis.tables import tables
from laptime.analysis.wording import source_of_steps
from laptime.command_line import program
from laptime.record.renamed import override_by_new_name
from laptime.record.score import ACCURACY
from laptime.text import counted, escape_control_chars

CAPTIONS = {
    "speedup": "Speedup over one process by number of ranks, with the fitted laws. Bars and band: 95% intervals.",
    "efficiency": "Scaling efficiency: speedup per rank. Bars: 95% intervals.",
    "overheads": "Where the time of a step goes. Ideal: the time of a step if more ranks had no overhead.",
    "pareto": "Trade-off between two objectives: every group, and the Pareto front.",
    "throughput": "Throughput of every group and of each of its repeats.",
    "steps": "Phases of a step, from {source}.",
    "epoch_times": "Time of every {lap}, for every rank and repeat.",
    "loss": "Loss over {lap}s and over training time. Bands span the repeats.",
    "accuracy": "Accuracy over {lap}s and over training time. Bands span the repeats.",
    "score": "Score over {lap}s and over training time. Bands span the repeats.",
    "resources": "Memory and CPU use of all ranks.",
}

# Images that consist of two plots side by side.
_PAIRS = ("loss", "accuracy", "score", "resources")

_MFU = (
    "MFU (model FLOPs utilization) is achieved FLOP/s over a measured peak: the fastest matrix product that a short "
    "probe finds on the same device, with the same precision, threads and ranks. Operations are counted by torch."
)
_REPEAT = "Repeats are runs that differ only in the seed, on the same machine, with the same code and data."
_MEDIANS = "A group's value is the median over its repeats; a repeat's value is the median over its counted {lap}s."

METHODS = (
    "Quality: A, no interference detected; B, interference is possible; C, interference detected. Signs of "
    "interference: other processes, CPU steal or throttling, a falling clock frequency, swapping, battery power, "
    "outliers, more threads than cores. A group has the quality of its worst repeat.",
    f"{_MFU} The phases of a step are measured in separate steps after the timed {{lap}}s, with a device "
    "synchronization between phases. They are interquartile means over these steps.",
    "The {lap} time is measured from the request for the first batch to the device-synchronized end of the last "
    "optimizer step, without validation, checkpointing and logging. A run's {lap} time is that of its slowest rank. "
    "Warm-up {lap}s are not counted.",
    f"{_REPEAT} {_MEDIANS}",
    "Speedup is throughput (global samples/s) divided by the baseline's, for strong and for weak scaling. Scaling "
    "efficiency is speedup divided by the number of ranks.",
    "Intervals are 95% percentile bootstrap intervals (9,999 resamples over repeats) of the ratio of medians (Efron "
    "and Tibshirani 1993). One repeat has no interval. In simulations, intervals cover the true value in 92% to 98% of "
    "cases with five or more repeats, and in about 90% with three.",
    "The serial fraction is Karp and Flatt's (1990). Amdahl's law (1967) and Gunther's universal scalability law "
    "(2007) are fitted by least squares. Intervals of their parameters use Student's t; intervals of projections come "
    "from sampled parameters.",
    "Differences are tested with the two-sided Mann-Whitney test at 5%, which is exact for few repeats. It needs at "
    "least four repeats on both sides.",
    "Results agree if the difference of test accuracies is within the spread of the repeats or the error of a finite "
    "test set (1.96 standard errors), and the difference of training losses is within the spread of the repeats.",
)


def methods(analysis: Analysis) -> tuple[str, ...]:
    """Return how the figures were measured, and what a lap contains if Laptime only timed the training."""
    timed = [group for group in analysis.groups if not group.first.record.is_laptime_training]
    trained = [group for group in analysis.groups if group not in timed]
    by_laps = [group for group in analysis.groups if lap_word([group]) == "lap"]
    contents = dict.fromkeys((group.conditions.lap, group.first.record.lap.contents) for group in by_laps)
    laps = [f"A lap ({lap}): {escape_control_chars(words)}" for lap, words in contents if words]
    if timed and not trained:
        return (*_methods_of_timed(analysis), *laps)
    sentences = [sentence.format(lap=lap_word(trained)) for sentence in METHODS]
    sentences[-1] = _agreement(analysis, sentences[-1])
    if not timed:
        return (*sentences, *laps)
    phases = "In trainings that Laptime only timed, the phases are measured in steps of the warm-up."
    return (*sentences, phases, *laps)


def _methods_of_timed(analysis: Analysis) -> list[str]:
    """Return the methods for trainings that Laptime only timed, without those of figures that the report omits."""
    quality, _, _, _, speedup, intervals, laws, test, _ = METHODS
    groups, is_scaled = analysis.groups, bool(analysis.families)
    sentences = [quality]
    if any(group.median("peak", "matmul_flop_per_s") for group in groups):
        sentences.append(_MFU)
    if any(group.median("breakdown", "step_s") for group in groups):
        sentences.append("The phases of a step are measured in steps of the warm-up lap.")
    sentences.append("A run's lap time is that of its slowest rank. Warm-up laps are not counted.")
    sentences.append(f"{_repeat(analysis)} {_MEDIANS.format(lap='lap')}")
    if is_scaled:
        sentences.append(speedup)
    elif analysis.comparisons:
        sentences.append("Speedup is throughput (global samples/s) divided by the baseline's.")
    if is_scaled or analysis.comparisons:
        sentences.append(intervals)
    if is_scaled:
        sentences.append(laws)
    if analysis.comparisons:
        sentences.append(test)
    has_results = is_scaled or analysis.comparisons
    return [*sentences, _agreement(analysis, _AGREEMENT)] if has_results else sentences


def _repeat(analysis: Analysis) -> str:
    unknown = [run for run in analysis.runs if run.dataset.checksum is None]
    if not unknown:
        return _REPEAT
    which = "The data have" if len(unknown) == len(analysis.runs) else "The data of some runs have"
    return (
        "Repeats are runs that differ only in the seed, on the same machine, with the same code. "
        f"{which} no checksum, so the data may differ."
    )


def _agreement(analysis: Analysis, words_for_accuracies: str) -> str:
    """Return when results agree."""
    return words_for_accuracies if all_scores(analysis.groups) == [ACCURACY] else _AGREEMENT_OF_SCORES


_AGREEMENT_OF_SCORES = (
    "Results agree if the differences of test scores and of training losses are within the spread of the repeats; for "
    "test accuracies, the error of a finite test set (1.96 standard errors) counts, too. Without test scores, "
    "validation scores are compared. Runs with different scores are not compared by them."
)
_AGREEMENT = (
    "Results agree if the difference of test accuracies is within the spread of the repeats or, where the size of the "
    "test set is known, its error (1.96 standard errors), and the difference of training losses is within the spread "
    "of the repeats. Without test accuracies, validation accuracies are compared by the spread of the repeats."
)


def as_text(analysis: Analysis) -> str:
    """Return the report in plain text of 110 columns."""
    console = Console(width=110, record=True, file=io.StringIO(), color_system=None)
    console.print(Text("LAPTIME REPORT", style="bold"))
    console.print(Text("=" * 60))
    for title, rows in environment(analysis):
        console.print(Text(title, style="bold"))
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
_MAX_WORD_WIDTH = 32
# If columns would get narrower than this, rich chooses the widths.
_MIN_COLUMN_WIDTH = 8


def _print_table(table: Table, console: Console, lines: box.Box) -> None:
    shown = RichTable(title=Text(table.title), title_justify="left", title_style="bold", box=lines)
    widths = _widths(table, console.width)
    indices = list(widths)
    for index, width in widths.items():
        shown.add_column(Text(table.columns[index].head), overflow="fold", width=width)
    for row in table.rows:
        shown.add_row(*(Text(row.cells[index].text) for index in indices))
    console.print(shown)
    for row in table.rows:
        sentences = [cell.text for cell in table.sentences(row)]
        if sentences:
            console.print(Text(f"{row.cells[0].text}: {'; '.join(sentences)}"))
    for note in table.all_notes(indices):
        console.print(Text(note, style="dim"))


def _widths(table: Table, width: int) -> dict[int, int | None]:
    """Return the widths of the columns that a terminal shows, by column index.

    Optional columns are omitted to avoid broken words, the last one first. If the terminal is too narrow, widths are
    None, and rich chooses them.
    """
    indices = table.figures
    cells = {index: [table.columns[index].head, *(row.cells[index].text for row in table.rows)] for index in indices}
    words = {index: [word for cell in cells[index] for word in cell.split()] for index in indices}
    least = {index: min(max(map(len, words[index]), default=1), _MAX_WORD_WIDTH) for index in indices}
    for index in reversed([index for index in indices if table.columns[index].is_optional]):
        if _line(least) <= width:
            break
        del least[index]
    while _line(least) > width:  # break words in as few columns as possible
        widest = max(least, key=lambda index: least[index])
        if least[widest] <= _MIN_COLUMN_WIDTH:
            return dict.fromkeys(least)
        least[widest] -= 1
    widths = dict(least)
    longest = {index: max(map(len, cells[index])) for index in widths}
    while _line(widths) < width and (short := [index for index in widths if widths[index] < longest[index]]):
        widths[min(short, key=lambda index: widths[index] / longest[index])] += 1
    return dict(widths)


def _line(widths: Mapping[int, int]) -> int:
    """Return the width of a line in characters: columns, a space on both sides of each, and borders."""
    return 1 + sum(width + 3 for width in widths.values())


def as_markdown(analysis: Analysis, plots: Sequence[str]) -> str:
    """Return the report in Markdown. Its images are in plots/."""
    lines = [f"# {_md(question(analysis))}", "", f"**{_md(answer(analysis))}**", ""]
    lines += [f"- Missing: {_md(problem)}" for problem in problems(analysis)]
    for table in tables(analysis):
        lines += ["", f"## {_md(table.title)}", ""]
        lines.append(f"| {' | '.join(_md(column.head) for column in table.columns)} |")
        lines.append("|" + "---|" * len(table.columns))
        lines += [f"| {' | '.join(_md(cell.text) for cell in row.cells)} |" for row in table.rows]
        lines += ["", *(f"{_md(note)}\n" for note in table.all_notes())]
    if plots:
        lines += ["## Plots", "", *([_omitted_note(analysis), ""] if _omitted_note(analysis) else [])]
    lines += [f"![{caption(name, analysis)}](plots/{name}.png)\n" for name in plots]
    lines += ["## Methods", "", *(f"- {method}" for method in methods(analysis)), "", "## Environment"]
    for title, rows in environment(analysis):
        lines += ["", f"### {_md(title)}", "", *(f"- {_md(name)}: {_md(value)}" for name, value in rows)]
    lines += ["", "## Commands", "", *(f"    {command}" for command in commands(analysis)), ""]
    return "\n".join(lines)


def as_html(analysis: Analysis, plots: Mapping[str, bytes]) -> str:
    """Return the report as one self-contained HTML file. Texts from configurations and paths are escaped."""
    return _template().render(
        question=question(analysis),
        answer=answer(analysis),
        tables=tables(analysis),
        plots=[
            (caption(name, analysis), base64.b64encode(image).decode(), _kind(name) in _PAIRS)
            for name, image in plots.items()
        ],
        omitted=_omitted_note(analysis) if plots else "",
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
    """Return the caption of a plot."""
    words = CAPTIONS[_kind(name)]
    return words.format(source=source_of_steps(analysis.groups), lap=lap_word(analysis.groups))


def _kind(name: str) -> str:
    """Return the name of a plot without its number."""
    return name if name in CAPTIONS else name.rpartition("_")[0]


def environment(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return titled lists of names and values: one per machine, and one for device, software, code and data.

    If runs differ, all values of a name are listed.
    """
    if not analysis.runs:
        return []
    machines: dict[str, list[Run]] = {}
    for run in analysis.runs:
        machines.setdefault(repr((run.environment.hostname_hash, hardware_rows(run.environment))), []).append(run)
    sections = []
    for number, runs in enumerate(machines.values(), start=1):
        machine = runs[0].environment
        name = machine.hostname or machine.hostname_hash
        title = f"Machine {number}: {name}, {counted(len(runs), 'run')}" if len(machines) > 1 else "Machine"
        sections.append((escape_control_chars(title), _printable(hardware_rows(machine))))
    values_by_name: dict[str, list[str]] = {}
    for run in analysis.runs:
        for name, value in software_rows(run):
            if not value and not run.record.is_laptime_training:
                continue
            if value not in values_by_name.setdefault(name, []):
                values_by_name[name].append(value)
    software = _printable([(name, "; ".join(values)) for name, values in values_by_name.items()])
    started = [run.record.started_at for run in analysis.runs if run.record.started_at]
    if started:
        software.append(("Measured", f"{min(started)} to {max(started)} (UTC), {len(analysis.runs)} runs"))
    return [*sections, ("Device, software, code and data", software)]


def _printable(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, escape_control_chars(value)) for name, value in rows if value]


def commands(analysis: Analysis) -> list[str]:
    """Return the commands that started the runs, and the command that made this report.

    They have the current names of keys, and no duplicates.
    """
    run_commands = [shlex.join(map(override_by_new_name, run.command)) for run in analysis.runs]
    report_command = f"{program('analyze')} {shlex.join(str(folder) for folder in analysis.folders)}"
    return [escape_control_chars(command) for command in dict.fromkeys([*run_commands, report_command]) if command]


def _omitted_note(analysis: Analysis) -> str:
    """Return which groups and families the plots omit; empty: none."""
    from laptime.analysis.plots import MAX_FAMILIES, MAX_GROUPS  # loads Matplotlib

    if len(analysis.groups) <= MAX_GROUPS and len(analysis.families) <= MAX_FAMILIES:
        return ""
    return (
        f"The plots show at most {MAX_GROUPS} of {len(analysis.groups)} groups and {MAX_FAMILIES} of "
        f"{len(analysis.families)} scaling families. The tables contain all of them."
    )


def _md(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("*", "\\*").replace("_", "\\_").replace("`", "\\`").replace("\n", " ")
