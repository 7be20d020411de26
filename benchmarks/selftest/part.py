"""A part of the self-test: its input, the notes that it takes, and its result."""

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
    """The tested device.

    Attributes:
        kind: cuda, mps or xpu; cpu in a rehearsal.
        num_devices: number of devices of this kind.
        rehearsal: whether the CPU takes the place of the accelerator.
        folder: folder for the part's files; removed afterwards.
    """

    kind: str
    num_devices: int
    rehearsal: bool
    folder: str


@dataclass(frozen=True)
class Check:
    """One check of a part.

    Attributes:
        what: the check's name, e.g. `model=cnn`.
        status: pass, fail or skipped.
        detail: the compared values, or the reason why the check was skipped.
    """

    what: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Figure:
    """One value that a part measured.

    Attributes:
        what: the value's name.
        value: the number.
        unit: its unit, e.g. `GB/s`.
    """

    what: str
    value: float
    unit: str


@dataclass(frozen=True)
class Remark:
    """An explanation of a part's figures or failures, e.g. a busy device.

    Attributes:
        text: one line.
    """

    text: str


class Skipped(Exception):
    """A part, or the rest of it, can't run on this machine. The message says why."""


def missing_package(error: BaseException | None) -> str | None:
    """The name of the missing package if an error was caused by its import; else None."""
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
        error: first line of the error that ended the part; None: it ran to its end.
        skipped: the reason why it can't run on this machine.
        memory: how much of the device's memory other processes use, as text; None: little, or unknown.
    """

    error: str | None = None
    skipped: str | None = None
    memory: str | None = None


class Notes:
    """Sends a part's results to the parent immediately, so that they survive if the part crashes or is killed.

    Args:
        connection: connection to the parent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def check(self, what: str, passed: bool, detail: str) -> None:
        """Send a check that passed or failed."""
        self._connection.send(Check(what, "pass" if passed else "fail", detail))

    def skip(self, what: str, why: str) -> None:
        """Send a check that can't run on this machine."""
        self._connection.send(Check(what, "skipped", why))

    def figure(self, what: str, value: float, unit: str) -> None:
        """Send a measured value."""
        self._connection.send(Figure(what, float(value), unit))

    def remark(self, text: str) -> None:
        """Send an explanation of figures or failures."""
        self._connection.send(Remark(text))

    @contextmanager
    def attempt(self, what: str, refusals: bool = False) -> Iterator[None]:
        """Turn an exception in the block into a failed check, so that the part continues after it.

        Args:
            what: the check's name.
            refusals: whether a UserError skips the check, with the error's message.
        """
        try:
            yield
        except (Skipped, torch.AcceleratorError):  # after an AcceleratorError the device can't compute any more
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
        name: the part's name, for --only.
        about: what it tests, for the page.
        work: the function to call, with `Setting.folder` as the current folder.
        limit_s: time limit in seconds.
    """

    name: str
    about: str
    work: Work
    limit_s: float = 60.0


@dataclass
class Result:
    """The result of a part.

    Attributes:
        name, about: name and description of the part.
        status: fail if a check failed or the part did not run to its end; skipped if nothing was tested.
        why: for fail and skipped: the reason in one line; for pass: what was skipped, and the remarks.
        wall_s: duration in seconds, including the start of its process.
        checks, figures, remarks: in the order in which the part sent them.
        output: last lines of the output, if the part did not run to its end.
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
            further = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            reason = end.error or f"{failed[0].what}: {failed[0].detail}{further}"
            self.status, self.why = "fail", f"{reason} ({end.memory})" if end.memory else reason
        elif self.figures or self.remarks or any(check.status == "pass" for check in self.checks):
            skipped = [f"the rest was skipped: {end.skipped}"] if end.skipped else []
            self.status = "pass"
            self.why = "; ".join([*skipped, *(remark.text for remark in self.remarks)]) or None
        else:
            self.status = "skipped"
            self.why = end.skipped or (self.checks[0].detail if self.checks else "it had no results")
