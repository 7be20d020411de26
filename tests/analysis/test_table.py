"""Tables: columns, sentences and tones in the terminal and in HTML."""

import re
from io import StringIO
from pathlib import Path

import pytest
from rich import box
from rich.console import Console

from laptime.analysis import report
from laptime.analysis.analyze import analyze
from laptime.analysis.cells import results_cell, with_spread
from laptime.analysis.results import Agreement, Verdict
from laptime.analysis.table import Cell, Column, Table, Tone, columns, row

pytestmark = pytest.mark.unit

HEADS = columns("place", Column("size", is_optional=True), Column("verdict", is_sentence=True))
SHOWN = Table(
    "Made up",
    HEADS,
    (
        row("here", Cell("none", Tone.MISSING), Cell("wrong", Tone.WARNING)),
        row("results (projected)", "differs", "differs"),
        row("there", "not measured", "", is_projected=True),
    ),
)


def test_texts_are_plain_cells_of_ordinary_columns():
    assert HEADS[0] == Column("place", is_optional=False, is_sentence=False)
    assert row("here").cells == (Cell("here", Tone.PLAIN),) and not row("here").is_projected


def test_sentences_are_separate_from_figures():
    assert SHOWN.figures == [0, 1]
    assert [[cell.text for cell in SHOWN.sentences(line)] for line in SHOWN.rows] == [["wrong"], ["differs"], []]


def test_empty_columns_are_omitted():
    table = Table("", columns("a", "b", "c"), (row("1", "", ""), row("2", "", "3")))
    shortened = table.without_empty_columns()
    assert [column.head for column in shortened.columns] == ["a", "c"]
    assert [[cell.text for cell in line.cells] for line in shortened.rows] == [["1", ""], ["2", "3"]]


def test_html_has_classes_for_tones_and_kinds_of_rows(write, work_folder, monkeypatch):
    monkeypatch.setattr(report, "tables", lambda analysis: [SHOWN])
    write(Path("run"), [9.0, 1.0])
    html = report.as_html(analyze([Path()]), {})
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    assert re.findall(r'<td class="([^"]*)">([^<]*)</td>', body) == [
        ("short", "here"), ("short missing", "none"), ("short", "results (projected)"), ("short", "differs"),
        ("short", "there"), ("short", "not measured"),
    ]  # fmt: skip
    assert re.findall(r"<span([^>]*)>([^<]*)</span>", body) == [(' class="differs"', "wrong"), ("", "differs")]
    assert re.findall(r"<tr([^>]*)>", body) == [
        "",
        ' class="sentences"',
        "",
        ' class="sentences"',
        ' class="projected"',
    ]


@pytest.mark.parametrize(("width", "has_size"), [(80, True), (20, False)])
def test_a_narrow_terminal_omits_optional_columns(width, has_size):
    table = Table("", HEADS, (row("here", "10,000,000", "a sentence below"),))
    console = Console(width=width, file=StringIO(), record=True)
    report._print_table(table, console, box.ASCII2)
    text = console.export_text()
    assert ("10,000,000" in text) is has_size
    assert text.rstrip().split("\n")[-1 if width == 80 else -2].startswith("here: a sentence")


def test_a_difference_is_a_warning_and_a_missing_figure_is_marked():
    tones = {verdict: results_cell(Agreement(verdict)).tone for verdict in Verdict}
    assert tones == {
        Verdict.AGREES: Tone.PLAIN,
        Verdict.DIFFERS: Tone.WARNING,
        Verdict.UNKNOWN: Tone.PLAIN,
        Verdict.INCOMPARABLE: Tone.PLAIN,
    }
    assert with_spread([], 1, "{:.2f}".format).tone is Tone.MISSING
    assert with_spread([0.5, 0.7], 100, "{:.0f}%".format) == Cell("60% ± 14%")
