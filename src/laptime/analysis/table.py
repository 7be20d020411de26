"""A table for people, as values: the terminal, Markdown and HTML each render it in their way."""

from dataclasses import dataclass, replace
from enum import StrEnum


class Tone(StrEnum):
    """How a cell is to be read."""

    PLAIN = "plain"
    OPEN = "open"  # not measured
    WARNING = "warning"


@dataclass(frozen=True)
class Cell:
    """A text with its tone; an empty text: there is nothing to say."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class Row:
    """A row of cells.

    Attributes:
        cells: one per column.
        is_projected: whether its figures are expected and not measured.
    """

    cells: tuple[Cell, ...]
    is_projected: bool = False


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: its title.
        is_optional: whether a narrow terminal leaves it out.
        is_sentence: whether its cells are sentences, which terminal and HTML show below the other cells.
    """

    head: str
    is_optional: bool = False
    is_sentence: bool = False


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: what it shows.
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
        """The places of the columns that are no sentences."""
        return [place for place, column in enumerate(self.columns) if not column.is_sentence]

    def sentences(self, row: Row) -> list[Cell]:
        """The cells of a row that are sentences, without empty ones."""
        return [cell for column, cell in zip(self.columns, row.cells, strict=True) if column.is_sentence and cell.text]

    def without_empty_columns(self) -> "Table":
        """A copy without the columns that are empty in all rows, as is the spread of repeats where there are none."""
        places = [place for place in range(len(self.columns)) if any(row.cells[place].text for row in self.rows)]
        return replace(
            self,
            columns=tuple(self.columns[place] for place in places),
            rows=tuple(replace(row, cells=tuple(row.cells[place] for place in places)) for row in self.rows),
        )


def row(*cells: str | Cell, is_projected: bool = False) -> Row:
    """A row; texts become plain cells."""
    return Row(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells), is_projected)


def columns(*heads: str | Column) -> tuple[Column, ...]:
    """Columns; texts become heads of ordinary ones."""
    return tuple(Column(head) if isinstance(head, str) else head for head in heads)
