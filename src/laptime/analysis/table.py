"""Tables in a form that does not depend on the output. The terminal, Markdown and HTML render them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class Tone(StrEnum):
    """The emphasis of a cell."""

    PLAIN = "plain"
    MISSING = "missing"  # not measured
    WARNING = "warning"


@dataclass(frozen=True)
class Cell:
    """A text with its tone. An empty text means no value."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class Row:
    """A row of cells.

    Attributes:
        cells: one cell per column.
        is_projected: whether its figures are projected, not measured.
    """

    cells: tuple[Cell, ...]
    is_projected: bool = False


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: the title of the column.
        is_optional: whether a narrow terminal omits it.
        is_sentence: whether its cells are sentences. Terminal and HTML show them below the other cells.
        note: a sentence below the table, if the column is shown.
    """

    head: str
    is_optional: bool = False
    is_sentence: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table for readers.

    Attributes:
        title: the heading of the table.
        columns: the columns from left to right.
        rows: the rows from top to bottom.
        notes: the lines below the table, without the notes of the columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> list[int]:
        """The indices of the columns that are not sentences."""
        return [index for index, column in enumerate(self.columns) if not column.is_sentence]

    def all_notes(self, indices: Iterable[int] | None = None) -> list[str]:
        """Return the lines below the table.

        Args:
            indices: the columns that are shown; None: all.
        """
        shown = range(len(self.columns)) if indices is None else indices
        of_columns = " ".join(note for index in shown if (note := self.columns[index].note))
        return [*self.notes, *([of_columns] if of_columns else [])]

    def sentences(self, row: Row) -> list[Cell]:
        """Return the non-empty cells of a row that are sentences."""
        return [cell for column, cell in zip(self.columns, row.cells, strict=True) if column.is_sentence and cell.text]

    def without_empty_columns(self) -> "Table":
        """Return a copy without columns that are empty in all rows, e.g. the standard deviation of single repeats."""
        indices = [index for index in range(len(self.columns)) if any(row.cells[index].text for row in self.rows)]
        return replace(
            self,
            columns=tuple(self.columns[index] for index in indices),
            rows=tuple(replace(row, cells=tuple(row.cells[index] for index in indices)) for row in self.rows),
        )


def row(*cells: str | Cell, is_projected: bool = False) -> Row:
    """Make a row. Texts become plain cells."""
    return Row(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells), is_projected)


def columns(*heads: str | Column) -> tuple[Column, ...]:
    """Make columns. Texts become heads of ordinary columns."""
    return tuple(Column(head) if isinstance(head, str) else head for head in heads)
