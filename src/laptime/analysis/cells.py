"""Formats figures for the cells of tables."""

import math
from collections.abc import Callable, Sequence

from laptime.analysis.group import Group, all_scores, common_score, with_tokens
from laptime.analysis.results import Agreement, Verdict
from laptime.analysis.statistics import MIN_REPEATS, Interval, median_and_deviation
from laptime.analysis.table import Cell, Column, Tone
from laptime.analysis.wording import agreement_words
from laptime.record.score import ACCURACY, descriptions
from laptime.text import byte_size

RESULTS = Column("results", is_sentence=True)
REMARKS = Column("remarks", is_sentence=True)
NOT_MEASURED = Cell("not measured", Tone.MISSING)


def with_interval(value: float | None, interval: Interval | None, scale: float = 1.0, unit: str = "") -> str:
    """Format a figure with its interval.

    Args:
        value: the figure; None: there is no baseline.
        interval: its interval; None: there is only one repeat.
        scale: factor for the bounds of the interval.
        unit: the unit. With `%`, the value is a fraction and is shown as a percentage.
    """
    if value is None:
        return "no baseline"
    shown = value * (100 if unit == "%" else 1)
    digits = 1 if unit == "%" else 2
    if interval is None:
        return f"{shown:.{digits}f}{unit}"
    return f"{shown:.{digits}f}{unit} ({interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f})"


def with_spread(values: Sequence[float], scale: float, show: Callable[[float], str]) -> Cell:
    """Format median and standard deviation over the repeats with `show`, both multiplied by `scale`."""
    finite = [value * scale for value in values if math.isfinite(value)]
    if not finite:
        return NOT_MEASURED
    median, deviation = median_and_deviation(finite)
    return Cell(show(median) if deviation is None else f"{show(median)} ± {show(deviation)}")


class ScoreColumn:
    """The column of the test score. It has the validation score if no group has a test score and one has the other.

    Args:
        groups: the groups of the table.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._scores, self._common = all_scores(groups), common_score(groups)
        only_validated = _is_measured("val_score", groups) and not _is_measured("test_score", groups)
        # Tables of accuracies have always had the test accuracy alone.
        self._stage = "val" if only_validated and self._common != ACCURACY else "test"
        stage = "validation" if self._stage == "val" else "test"
        self._name = f"{stage} {'score' if self._common is None else self._common.name}"

    def head(self, with_note: bool = True) -> Column:
        """Return the head.

        Args:
            with_note: whether to explain the spread below the table.
        """
        spread = f"{self._name}: median ± standard deviation over the repeats"
        if self._common is None:
            spread += f". It is not compared: the scores are {descriptions(self._scores)}"
        elif self._common != ACCURACY:
            details = self._common.description.removeprefix(f"{self._common.name} ")
            spread += f" {details}"
        is_noted = with_note or self._common != ACCURACY
        return Column(self._name, note=f"{spread}." if is_noted else "")

    def cell(self, group: Group) -> Cell:
        """Return the cell of a group."""
        score = group.score
        if score is None:
            return Cell("different scores", Tone.MISSING)
        cell = with_spread(group.values("result", f"{self._stage}_score"), score.factor, score.format_scaled)
        if self._common is not None or cell is NOT_MEASURED:
            return cell
        return Cell(f"{score.name} {cell.text}")


def _is_measured(key: str, groups: Sequence[Group]) -> bool:
    return any(group.values("result", key) for group in groups)


def percent_of(value: float | None, whole: float) -> str:
    return "" if value is None else f"{value / whole:.1%}"


def tokens_cells(group: Group, groups: Sequence[Group]) -> list[str]:
    """Return the tokens/s cell of a group if all groups have tokens/s; otherwise no cell."""
    return [f"{group.tokens_per_s:,.0f}"] if with_tokens(groups) else []


def tokens_head(groups: Sequence[Group]) -> list[str]:
    """Return the head of the tokens/s column if all groups have tokens/s; otherwise no head."""
    return ["tokens/s"] if with_tokens(groups) else []


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.2f}"


def gigabytes(value: float | None) -> str:
    return "" if value is None else byte_size(value, "GB", 2)


def three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def results_cell(agreement: Agreement | None) -> Cell:
    differs = agreement is not None and agreement.verdict is Verdict.DIFFERS
    return Cell(agreement_words(agreement), Tone.WARNING if differs else Tone.PLAIN)


def interval_note(groups: Sequence[Group]) -> list[str]:
    """Return a warning if intervals come from too few repeats; otherwise no text."""
    fewest = min(len(group.runs) for group in groups)
    if not 1 < fewest < MIN_REPEATS:
        return []
    return [
        f"With {fewest} repeats, intervals are too narrow: they cover the true value in fewer than 95 of 100 cases. "
        f"Use at least {MIN_REPEATS} repeats."
    ]
