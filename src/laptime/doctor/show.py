"""What the doctor found, on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MARKS = {True: ("[ok]", "green"), False: ("[!]", "bold red"), None: ("[?]", "dim")}
_VERDICTS = {"works": "green", "not there": "dim"}
_NAMES = {
    "cpu": "CPU",
    "num_usable_cores": "usable cores",
    "num_physical_cores": "physical cores",
    "num_logical_cores": "logical cores",
    "memory_bytes": "memory",
    "container_quota": "container quota",
    "os": "OS",
    "os_version": "kernel",
    "python": "Python",
    "num_torch_threads": "torch's threads",
}
# Said by other lines already, or of no use to a reader.
_LEFT_OUT = {"code_hash", "hostname_hash", "machine", "platform", "packages", "variables"}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print all of a report, in tables and one last line.

    Args:
        report: as `--json` prints it.
    """
    machine, noise, checks = report["machine"], report["noise"], report["checklist"]
    table = _table("machine", 2)
    for name, value in machine_rows(machine):
        table.add_row(Text(name), Text(value))
    console.print(table)
    table = _table("devices and backends", 3)
    for each in [*report["devices"], *report["backends"]]:
        name = f"{each['name']} {each['precision'] or ''}".strip()
        table.add_row(
            Text(name), Text(each["verdict"], _VERDICTS.get(each["verdict"], "bold red")), Text(each["detail"])
        )
    console.print(table)
    table = _table("noise right now", 2)
    for name, value in noise_rows(noise):
        table.add_row(Text(name), Text(value))
    console.print(table)
    table = _table("before measuring", 3)
    for each in checks:
        mark, style = _MARKS[each["ok"]]
        table.add_row(Text(mark, style), Text(each["name"]), Text(each["text"]))
    console.print(table)
    console.print(Text(last_line(report)), soft_wrap=True)


def machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the machine, the well-known lines first; nothing of what is None or holds several values."""
    order = [*(name for name in _NAMES if name in machine), *(name for name in machine if name not in _NAMES)]
    rows = []
    for name in order:
        value = machine[name]
        if name in _LEFT_OUT or not isinstance(value, str | int | float) or value == "":
            continue
        label = _NAMES.get(name, name.removesuffix("_bytes").removeprefix("num_").replace("_", " "))
        rows.append((label, _worded(name, value)))
    torch = (machine.get("packages") or {}).get("torch")
    return [*rows, ("torch", torch)] if torch else rows


def _worded(name: str, value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e3:,.0f} kB"
    return f"{value:g} cores" if name == "container_quota" else f"{value:g}"


def noise_rows(noise: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table on the probe."""
    times = f"{noise['num_laps']} laps of the same matrix products, {noise['num_threads']} thread"
    spread = f"median {1e3 * noise['median_s']:.0f} ms, p95 {noise['p95_over_median']:.2f} x the median"
    busiest = ", ".join(f"{each['name']} {each['cores']:.0%} of a core" for each in noise["busiest"])
    why = "; ".join(noise["reasons"]) or "nothing was seen that would disturb a measurement"
    return [
        ("grade", f"{noise['grade']}: {why}"),
        ("probe", f"{times}{'s' if noise['num_threads'] > 1 else ''}"),
        ("lap time", f"{spread}, {noise['num_outliers']} outlier{'' if noise['num_outliers'] == 1 else 's'}"),
        ("busiest others", busiest or "none that can be seen from here"),
    ]


def last_line(report: Mapping[str, Any]) -> str:
    """What it comes to."""
    to_change = sum(each["ok"] is False for each in report["checklist"])
    changes = f"{to_change} thing{'' if to_change == 1 else 's'} to change" if to_change else "nothing to change"
    works = f"broken: {', '.join(report['broken'])}" if report["broken"] else "all that is there works"
    return f"{works[0].upper()}{works[1:]}; noise {report['noise']['grade']}; {changes} before measuring."


def _table(title: str, num_columns: int) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    for _ in range(num_columns - 1):
        table.add_column(overflow="fold")
    return table
