"""Prints the report of an export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.evaluation.show import print_latency, training_length
from laptime.terminal import relative, wide_console
from laptime.text import byte_size, counted


def show(report: Mapping[str, Any], folder: Path | None) -> None:
    """Print the tables of an export to stdout.

    Args:
        report: the result of `export`.
        folder: the folder with the files; None: no file was kept.
    """
    console = wide_console()
    console.print(_files(report))
    if report["original"]["latency"] and report["exports"]:
        networks = {"original": report["original"]["latency"]}
        networks |= {export["name"]: export["latency"] for export in report["exports"]}
        print_latency(console, networks, report["timed"], report["disturbances"])
    _remarks(console, report)
    if folder is not None:
        console.print(Text(f"Written      {relative(folder)}"), soft_wrap=True)


def _files(report: Mapping[str, Any]) -> Table:
    data, length = report["dataset"], training_length(report["checkpoint"])
    threads = counted(report["threads"], "thread", ",")
    where = f"{data['num_images']:,} test images, {report['device']['name']}, {threads}"
    title = f"laptime: {report['model']} on {data['name']}, after {length}, exported; {where}"
    table = Table(title=Text(title), title_justify="left")
    for column in ("network", "file", "size", "batch", "difference", "agreement", "accuracy", "cost"):
        table.add_column(column, justify="left" if column in ("network", "file") else "right", no_wrap=True)
    original = report["original"]
    size, accuracy = byte_size(original["size_bytes"], "MB", 3), f"{original['test_accuracy']:.2%}"
    table.add_row("original", "", size, "any", "", "", accuracy, "")
    for export in report["exports"]:
        table.add_row(
            export["name"],
            export["file"],
            byte_size(export["size_bytes"], "MB", 3),
            str(export["batch_size"]),
            f"{export['difference']:.1e}",
            f"{export['agreement']:.2%}",
            f"{export['test_accuracy']:.2%}",
            f"{100 * export['accuracy_cost']:+.2f} points",
        )
    return table


def _remarks(console: Console, report: Mapping[str, Any]) -> None:
    lines = []
    if report["exports"]:
        lines.append(
            "Difference: the largest difference of a logit, relative to the original's largest logit; at most "
            f"{report['tolerance']:g}, except for int8."
        )
        if report["original"]["latency"]:
            lines.append("x original: the median ratio over rounds; each round runs all networks in turn.")
    for export in report["exports"]:
        lines += [f"{export['name']}: {note}" for note in export["notes"]]
        if export["int8_layers"]:
            lines.append(f"{export['name']}: int8 in {', '.join(export['int8_layers'])}")
    if report["has_other_data"]:
        lines.append("The run was tested on different data: don't compare its accuracy with these.")
    if report["trained_precision"] != "32-true":
        lines.append(f"The run trained in {report['trained_precision']}; all figures here are for float32.")
    lines += [f"{target['name']}: left out, {target['reason']}" for target in report["left_out"]]
    lines += [f"{failure['name']}: failed, {failure['reason']}" for failure in report["failed"]]
    for line in lines:
        console.print(Text(line))
