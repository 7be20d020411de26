"""The result of a check of a device or a backend."""

from dataclasses import dataclass
from textwrap import shorten
from typing import Literal

from laptime.errors import first_line

Verdict = Literal["works", "wrong results", "fails", "not available"]


@dataclass(frozen=True)
class Finding:
    """The result for one device in one precision, or for one backend.

    Attributes:
        name: the device (`cpu`, `cuda:1`) or the backend.
        verdict: "wrong results" means that no result of the device or backend can be trusted; "fails" means an error.
        detail: the figures behind the verdict, or the first line of the error.
        precision: a value of training.precision; None for a backend.
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
        return self.verdict in ("wrong results", "fails")


def in_one_line(error: BaseException) -> str:
    """The type and the first line of an error, shortened: torch's message may list all backends."""
    name, message = type(error).__name__, first_line(error)
    return shorten(name if message == name else f"{name}: {message}", 200, placeholder=" ...")
