"""Tables for readers, independent of the output. The terminal, Markdown and HTML render them."""

from dataclasses import dataclass, replace
from enum import StrEnum


class Tone(StrEnum):
    """The emphasis of a cell."""

    PLAIN = "plain"
    MISSING = "missing"  # not measured
    WARNING = "warning"


@dataclass(frozen=True)
class Cell:
    """A text with its tone. Empty text: no value."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class Row:
    """A row of cells.

    Attributes:
        cells: one per column.
        is_projected: whether its figures are projected, not measured.
    """

    cells: tuple[Cell, ...]
    is_projected: bool = False


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: its title.
        is_optional: whether a narrow terminal omits it.
        is_sentence: whether its cells are sentences. Terminal and HTML show them below the other cells.
    """

    head: str
    is_optional: bool = False
    is_sentence: bool = False


@dataclass(frozen=True)
class Table:
    """A table for readers.

    Attributes:
        title: its heading.
        columns: from left to right.
        rows: from top to bottom.
        notes: lines below it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> list[int]:
        """Indices of the columns that are not sentences."""
        return [index for index, column in enumerate(self.columns) if not column.is_sentence]

    def sentences(self, row: Row) -> list[Cell]:
        """The non-empty cells of a row that are sentences."""
        return [cell for column, cell in zip(self.columns, row.cells, strict=True) if column.is_sentence and cell.text]

    def without_empty_columns(self) -> "Table":
        """A copy without columns that are empty in all rows, e.g. the standard deviation of single repeats."""
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
