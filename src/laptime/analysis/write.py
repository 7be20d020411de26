"""Writes the results of an analysis: CSV and JSON files, reports and plots."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from laptime.analysis import report
from laptime.analysis.analyze import Analysis
from laptime.analysis.answer import answer, problems, question
from laptime.analysis.frames import run_row
from laptime.analysis.load import Run
from laptime.analysis.remarks import remarks_of
from laptime.analysis.scaling import Family
from laptime.analysis.summary_tables import comparison_table, groups_table, scaling_table
from laptime.record.files import finite, write_atomically
from laptime.text import escape_control_chars

SCHEMA_VERSION = 1


def write_tables(analysis: Analysis, out: Path) -> None:
    """Write runs.csv, groups.csv, scaling.csv, devices.csv, comparisons.csv and summary.json into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "runs": pd.DataFrame([run_row(run, label) for run, label in _labeled(analysis)]),
        "groups": groups_table(analysis.groups, analysis.target),
        "scaling": scaling_table(analysis.families, analysis.project),
        "devices": comparison_table([c for c in analysis.comparisons if c.key == "device"]),
        "comparisons": comparison_table([c for c in analysis.comparisons if c.key != "device"]),
    }
    for name, table in tables.items():
        text = table.map(_no_formula).to_csv(index=False, lineterminator="\n")
        write_atomically(out / f"{name}.csv", _bytes(text))
    summary = {
        "schema_version": SCHEMA_VERSION,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "question": question(analysis),
        "answer": answer(analysis),
        "problems": problems(analysis),
        "skipped": [
            {"path": escape_control_chars(str(directory.path)), "reason": directory.reason}
            for directory in analysis.skipped
        ],
        "groups": [
            {
                "label": group.label,
                "group_hash": group.first.group_hash,
                "conditions": asdict(group.conditions),
                "seeds": [run.seed for run in group.runs],
                "samples_per_s": group.throughputs,
                "remarks": remarks_of(group),
            }
            for group in analysis.groups
        ],
        "fits": [fit for family in analysis.families for fit in _fits(family)],
        "tables": {name: table.to_dict("records") for name, table in tables.items()},
    }
    write_atomically(out / "summary.json", (json.dumps(finite(summary), indent=1) + "\n").encode())


def write_reports(analysis: Analysis, out: Path, with_plots: bool = True) -> None:
    """Write plots/*.png, report.txt, report.md, report.html and tensorboard/ into a folder.

    Plots of an earlier report that this report lacks are removed.
    """
    from laptime.analysis.tensorboard import write_events

    images = _plots(analysis) if with_plots else {}
    folder = out / "plots"
    if images:
        folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        if old.stem not in images:
            old.unlink()
    if not images and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    for name, image in images.items():
        write_atomically(folder / f"{name}.png", image)
    write_atomically(out / "report.txt", _bytes(report.as_text(analysis)))
    write_atomically(out / "report.md", _bytes(report.as_markdown(analysis, list(images))))
    write_atomically(out / "report.html", _bytes(report.as_html(analysis, images)))
    write_events(analysis, images, out / "tensorboard")


def _plots(analysis: Analysis) -> dict[str, bytes]:
    from laptime.analysis.plots import plots  # Matplotlib is slow to import

    return plots(analysis)


def _bytes(text: str) -> bytes:
    """Encode a text in UTF-8. Characters of undecodable file names are escaped."""
    return text.encode("utf-8", "backslashreplace")


def _no_formula(value: object) -> object:
    """Return the value, with a quote before text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _labeled(analysis: Analysis) -> Iterator[tuple[Run, str]]:
    for group in analysis.groups:
        for run in group.runs:
            yield run, group.label


def _fits(family: Family) -> Iterator[dict[str, object]]:
    for fit in family.fits.values():
        best = fit.best_world_size
        yield {
            "family": family.name,
            "law": fit.name,
            "parameters": fit.parameters,
            "intervals": {name: asdict(interval) for name, interval in (fit.intervals or {}).items()},
            "r_squared": fit.r_squared,
            "deviation": fit.deviation,
            "best_world_size": None if best is None else {"value": best[0]} | asdict(best[1]),
        }
