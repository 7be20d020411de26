"""The score of a training that Laptime only times, and the names under which the training logs its values."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from laptime.record.score import STAGES, Score, Stage

_KEYS = ("metric", "name", "unit", "direction")
# The start of a metric's name that says where its values come from, with the separator after it.
_PREFIX = re.compile(r"(?P<word>train|training|val|valid|validation|eval|test)(?P<rest>[/_.-].+)")
_PREFIX_WORDS: Mapping[Stage, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval"),
    "test": ("test",),
}


@dataclass(frozen=True)
class LoggedScore:
    """A score that a training logs.

    Attributes:
        score: the score.
        metric: the name of its logged values, e.g. `val/bpc`. Values of the training and the test have the same name
            with `train` and `test`. A name without such a prefix stands for the validation alone.
    """

    score: Score
    metric: str

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> "LoggedScore":
        """Make it from the user's dictionary.

        Args:
            settings: `metric` and `direction` (min or max); optional: `name` (default: the metric without its prefix)
                and `unit` (`%`: the values are fractions).

        Raises:
            ValueError: a key is unknown, missing, or has a wrong value.
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"score={settings!r}: must be a dictionary with the keys {', '.join(_KEYS)}.")
        for key in settings:
            if key not in _KEYS:
                raise ValueError(f"score: unknown key {key!r}. Use {', '.join(_KEYS)}.")
        for key in ("metric", "direction"):
            if key not in settings:
                raise ValueError(f"score: has no {key!r}. Example: {{'metric': 'val/bpc', 'direction': 'min'}}.")
        for key, value in settings.items():
            if not isinstance(value, str) or not value.isprintable() or (key != "unit" and not value.strip()):
                raise ValueError(f"score[{key!r}]={value!r}: must be a string without control characters.")
        metric, direction = str(settings["metric"]), settings["direction"]
        if direction not in ("min", "max"):
            raise ValueError(f"score['direction']={direction!r}: must be 'min' or 'max'.")
        prefix = _PREFIX.fullmatch(metric)
        default_name = (metric if prefix is None else prefix["rest"][1:]).replace("_", " ")
        name, unit = str(settings.get("name", default_name)), str(settings.get("unit", ""))
        return cls(Score(name=name, unit=unit, is_maximized=direction == "max"), metric)

    def names(self, stage: Stage) -> tuple[str, ...]:
        """Return the names of the values of a stage, the most likely first."""
        prefix = _PREFIX.fullmatch(self.metric)
        if prefix is None:
            return (self.metric,) if stage == "val" else ()
        words = _PREFIX_WORDS[stage]
        if prefix["word"] in words:
            return (self.metric,)
        return tuple(f"{word}{prefix['rest']}" for word in words)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of the values of all stages."""
        return tuple(name for stage in STAGES for name in self.names(stage))

    def value(self, values: Mapping[str, float], stage: Stage) -> float | None:
        """Return the value of a stage; None: it is not among the logged values, or not finite.

        A percentage above 1 is divided by 100, because some trainings log percent instead of fractions.
        """
        value = next((values[name] for name in self.names(stage) if name in values), None)
        if value is None or not math.isfinite(value):
            return None
        return as_fraction(value) if self.score.unit == "%" else value


def as_fraction(value: float | None) -> float | None:
    """Return a value from 0 to 1, given as a fraction or in percent."""
    return value / 100 if value is not None and 1 < value <= 100 else value
