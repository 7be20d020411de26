"""Prints the report of the doctor."""

from collections.abc import Mapping
from typing import Any

from msgspec import convert
from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.analysis.environment import hardware_rows
from laptime.lap.quality import describe
from laptime.record.schema import Environment
from laptime.text import counted

_MARKS = {True: ("[ok]", "green"), False: ("[!]", "bold red"), None: ("[?]", "dim")}
_VERDICTS = {"works": "green", "not available": "dim"}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print a report as tables and a summary line.

    Args:
        report: the result of `examine`, which `--json` prints.
    """
    machine, noise, checks = report["machine"], report["noise"], report["checklist"]
    table = _table("machine", 2)
    for name, value in machine_rows(machine):
        table.add_row(Text(name), Text(value))
    console.print(table)
    table = _table("devices and backends", 3)
    for finding in [*report["devices"], *report["backends"]]:
        name = f"{finding['name']} {finding['precision'] or ''}".strip()
        table.add_row(
            Text(name), Text(finding["verdict"], _VERDICTS.get(finding["verdict"], "bold red")), Text(finding["detail"])
        )
    console.print(table)
    table = _table("noise right now", 2)
    for name, value in noise_rows(noise):
        table.add_row(Text(name), Text(value))
    console.print(table)
    table = _table("before measuring", 3)
    for check in checks:
        mark, style = _MARKS[check["ok"]]
        table.add_row(Text(mark, style), Text(check["name"]), Text(check["text"]))
    console.print(table)
    console.print(Text(last_line(report)), soft_wrap=True)


def machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table about the machine."""
    torch = f"{machine['packages']['torch']}, {machine['num_torch_threads']} threads, Python {machine['python']}"
    return [(name, words) for name, words in [*hardware_rows(convert(machine, Environment)), ("torch", torch)] if words]


def noise_rows(noise: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table about the noise probe."""
    times = f"{noise['num_laps']} laps of the same matrix products, {counted(noise['num_threads'], 'thread')}"
    spread = f"median {1e3 * noise['median_s']:.0f} ms, p95 {noise['p95_over_median']:.2f} x the median"
    busiest = ", ".join(f"{process['name']} {process['cores']:.0%} of a core" for process in noise["busiest"])
    return [
        ("grade", describe(noise["grade"], noise["reasons"])),
        ("probe", times),
        ("lap time", f"{spread}, {counted(noise['num_outliers'], 'outlier')}"),
        ("busiest others", busiest or "none visible to this user"),
    ]


def last_line(report: Mapping[str, Any]) -> str:
    """Return the last line of the report: what is broken, the grade of the noise, and how much to change."""
    to_change = sum(check["ok"] is False for check in report["checklist"])
    changes = f"{counted(to_change, 'thing')} to change" if to_change else "nothing to change"
    works = f"broken: {', '.join(report['broken'])}" if report["broken"] else "all devices and backends work"
    return f"{works[0].upper()}{works[1:]}; noise {report['noise']['grade']}; {changes} before measuring."


def _table(title: str, num_columns: int) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    for _ in range(num_columns - 1):
        table.add_column(overflow="fold")
    return table
