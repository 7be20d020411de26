"""What was found of a device or a backend: a verdict, and why."""

from dataclasses import dataclass
from textwrap import shorten
from typing import Literal

from laptime.errors import first_line

Verdict = Literal["works", "computes something else", "fails", "not there"]


@dataclass(frozen=True)
class Finding:
    """Of one device in one precision, or of one backend.

    Attributes:
        name: of the device (`cpu`, `cuda:1`) or of the backend.
        verdict: works; computes something else (than it should: never to be trusted); fails (with an error); not there.
        detail: the figures behind it, or the error's first line.
        precision: that a device trained in, as training.precision names it; None for a backend.
    """

    name: str
    verdict: Verdict
    detail: str
    precision: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}" if self.precision else self.name

    @property
    def is_broken(self) -> bool:
        return self.verdict in ("computes something else", "fails")


def in_one_line(error: BaseException) -> str:
    """An error as one line: its type and its message's first line, cut where it is long (torch lists all backends)."""
    name, said = type(error).__name__, first_line(error)
    return shorten(name if said == name else f"{name}: {said}", 200, placeholder=" ...")
