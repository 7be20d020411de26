"""The score of a task: its figure of merit, with a unit and a direction. Tables, plots and searches go by it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct, to_builtins

# Where a score comes from: the training, validation or test set.
Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class Score(Struct, frozen=True, kw_only=True):
    """A kind of score.

    Attributes:
        name: the name in tables and plots, e.g. `bits per character`.
        unit: the unit. `%`: values are fractions and are shown in percent. Empty: none.
        is_maximized: whether larger values are better.

    Raises:
        ValueError: the name is empty, or a text has control characters.
    """

    name: str
    unit: str = ""
    is_maximized: bool

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("the name of a score must not be empty")
        if not (self.name + self.unit).isprintable():
            raise ValueError("the name and the unit of a score must not have control characters")

    @property
    def factor(self) -> int:
        """The factor by which shown values exceed recorded ones: 100 for percent."""
        return 100 if self.unit == "%" else 1

    def format_scaled(self, scaled: float) -> str:
        """Format a value that is multiplied by `factor`, without a unit other than percent."""
        if self.unit == "%":
            return f"{scaled:.2f}%"
        return f"{scaled:,.0f}" if abs(scaled) >= 999.95 else f"{scaled:#.4g}"

    def number(self, value: float) -> str:
        """Format a value without a unit other than percent: `98.13%`, `1.880`."""
        return self.format_scaled(value * self.factor)

    def text(self, value: float) -> str:
        """Format a value: `98.13%`, `1.880 bits/char`."""
        return self._with_unit(self.number(value))

    def target_text(self, value: float) -> str:
        """Format a value that a user has chosen: `97.5%`, `1.9 bits/char`."""
        return f"{value:.1%}" if self.unit == "%" else self._with_unit(f"{value:g}")

    def difference_text(self, difference: float, digits: int = 2) -> str:
        """Format a difference of two values: `-0.85 points`, `+0.1200 bits/char (worse)`.

        Args:
            digits: decimal places of percentage points.
        """
        if self.unit == "%":
            points = f"{100 * difference:+.{digits}f} points"
            return points if self.is_maximized else f"{points} ({self._change(difference)})"
        sign = "-" if difference < 0 else "+"
        return f"{sign}{self._with_unit(self.format_scaled(abs(difference)))} ({self._change(difference)})"

    def spread_text(self, spread: float) -> str:
        """Format the distance of two values: `87.00 points`, `0.3000 bits/char`."""
        return f"{100 * spread:.2f} points" if self.unit == "%" else self.text(spread)

    @property
    def axis_label(self) -> str:
        """The label of an axis: `accuracy (%)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def description(self) -> str:
        """Everything that distinguishes it from other scores: `bits per character (bits/char, lower is better)`."""
        direction = f"{'higher' if self.is_maximized else 'lower'} is better"
        return f"{self.name} ({', '.join(filter(None, (self.unit, direction)))})"

    @property
    def tag(self) -> str:
        """The last part of its tags in loggers: `bits_per_character`."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_") or "score"

    def has_reached(self, value: float, target: float) -> bool:
        """Whether a value is at least as good as a target. NaN is not."""
        return value >= target if self.is_maximized else value <= target

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}" if self.unit not in ("", "%") else number

    def _change(self, difference: float) -> str:
        return "better" if (difference > 0) == self.is_maximized else "worse"


ACCURACY = Score(name="accuracy", unit="%", is_maximized=True)
BITS_PER_CHARACTER = Score(name="bits per character", unit="bits/char", is_maximized=False)


def descriptions(scores: Iterable[Score]) -> str:
    """List scores with their units and directions."""
    return " and ".join(score.description for score in scores)


def add_missing_scores(record: Mapping[str, Any]) -> None:
    """Make accuracy the score of a record that has accuracies and no score, as those of older versions, in place.

    Args:
        record: the content of run.json. Values of wrong types stay, so that reading the record reports them.
    """
    result = record.get("result")
    if not isinstance(result, dict) or result.get("score") is not None:
        return
    accuracies = {stage: result.get(f"{stage}_accuracy") for stage in STAGES}
    if all(value is None for value in accuracies.values()):
        return
    result["score"] = to_builtins(ACCURACY)
    result |= {f"{stage}_score": value for stage, value in accuracies.items()}
    result["time_to_score"] = result.get("time_to_accuracy")
