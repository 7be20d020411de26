"""What a part of the self-test is, what it is given, and what it notes."""

import importlib.util
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Literal

import torch

from laptime.errors import UserError

Status = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class Setting:
    """What is tested.

    Attributes:
        kind: cuda, mps or xpu; cpu in a rehearsal.
        num_devices: how many of this kind there are.
        rehearsal: whether the CPU stands in for the accelerator.
        folder: where the part may write; it is removed afterwards.
    """

    kind: str
    num_devices: int
    rehearsal: bool
    folder: str


@dataclass(frozen=True)
class Check:
    """One thing that a part looked at.

    Attributes:
        what: its name, like `model=cnn`.
        status: pass, fail or skipped.
        detail: the values that were compared, or why it was skipped.
    """

    what: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Figure:
    """One value that a part measured.

    Attributes:
        what: its name.
        value: a number.
        unit: of the number, like `GB/s`.
    """

    what: str
    value: float
    unit: str


@dataclass(frozen=True)
class Remark:
    """What explains a part's figures or failures, like a busy device.

    Attributes:
        text: in one line.
    """

    text: str


class Skipped(Exception):
    """A part, or the rest of it, can't be tried here. The message says why."""


def missing_package(error: BaseException | None) -> str | None:
    """The package that is not installed, where an error comes from its import."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            package = error.name.partition(".")[0]
            return package if importlib.util.find_spec(package) is None else None
        error = error.__cause__
    return None


@dataclass(frozen=True)
class Ended:
    """How a part ended.

    Attributes:
        error: the first line of what it raised; None where it came to its end.
        skipped: why it can't be tried here.
        memory: how much of the device's memory other processes use, in words; None: little, or not known.
    """

    error: str | None = None
    skipped: str | None = None
    memory: str | None = None


class Notes:
    """Sends what a part finds to the parent at once, so that it is kept when the part crashes or is ended.

    Args:
        connection: to the parent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def check(self, what: str, passed: bool, detail: str) -> None:
        """Note whether something is as it must be."""
        self._connection.send(Check(what, "pass" if passed else "fail", detail))

    def skip(self, what: str, why: str) -> None:
        """Note that something can't be tried here."""
        self._connection.send(Check(what, "skipped", why))

    def figure(self, what: str, value: float, unit: str) -> None:
        """Note a measured value."""
        self._connection.send(Figure(what, float(value), unit))

    def remark(self, text: str) -> None:
        """Note what explains figures or failures."""
        self._connection.send(Remark(text))

    @contextmanager
    def attempt(self, what: str, refusals: bool = False) -> Iterator[None]:
        """Note a failure within as a failed check, so that what comes after it is still tried.

        Args:
            what: the check's name.
            refusals: whether Laptime may refuse it by a UserError: then it is skipped with its words.
        """
        try:
            yield
        except (Skipped, torch.AcceleratorError):  # nothing more can be computed on the device
            raise
        except Exception as error:
            traceback.print_exc()
            package, line = missing_package(error), (str(error).strip().splitlines() or [type(error).__name__])[0]
            if package is not None:
                self.skip(what, f"{package} is not installed")
            elif refusals and isinstance(error, UserError):
                self.skip(what, f"refused: {line}")
            else:
                self.check(what, False, line)

    def ended(self, how: Ended) -> None:
        self._connection.send(how)


Work = Callable[[Setting, Notes], None]


@dataclass(frozen=True)
class Part:
    """One part of the self-test.

    Attributes:
        name: as typed after --only.
        about: what it tries, for the page.
        work: does it, with the current folder set to `Setting.folder`.
        limit_s: seconds after which it is ended.
    """

    name: str
    about: str
    work: Work
    limit_s: float = 60.0


@dataclass
class Result:
    """What became of a part.

    Attributes:
        name, about: of the part.
        status: fail where one check failed or the part did not come to its end; skipped where nothing was tried.
        why: for fail and skipped: the reason in one line; for pass: what was left out, and the remarks.
        wall_s: seconds that it took, the start of its process included.
        checks, figures, remarks: in the order in which they were noted.
        output: of a part that did not come to its end, the last lines that it printed.
    """

    name: str
    about: str
    status: Status = "pass"
    why: str | None = None
    wall_s: float = 0.0
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    output: list[str] = field(default_factory=list)

    def conclude(self, end: Ended) -> None:
        """Set status and reason from the checks and from how the part ended."""
        failed = [check for check in self.checks if check.status == "fail"]
        if end.error is not None or failed:
            others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            why = end.error or f"{failed[0].what}: {failed[0].detail}{others}"
            self.status, self.why = "fail", f"{why} ({end.memory})" if end.memory else why
        elif self.figures or self.remarks or any(check.status == "pass" for check in self.checks):
            left_out = [f"the rest was skipped: {end.skipped}"] if end.skipped else []
            self.status = "pass"
            self.why = "; ".join([*left_out, *(remark.text for remark in self.remarks)]) or None
        else:
            self.status = "skipped"
            self.why = end.skipped or (self.checks[0].detail if self.checks else "it noted nothing")
