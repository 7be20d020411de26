"""Shows on a terminal that a command is starting, because loading PyTorch takes seconds. Other output replaces it."""

import atexit
import os
import sys
from collections.abc import Sequence
from typing import Any

_TEXT = "laptime: starting ..."
# Commands with one of these print at once, or into a shell's completion.
_IMMEDIATE = {"--version", "-sc", "--shell-completion"}

# print() crashes if the stream in which it writes is deleted meanwhile: https://github.com/python/cpython/issues/130163
_kept: list[Any] = []


def announce(arguments: Sequence[str]) -> None:
    """Show the line, if stderr is a terminal that can erase it.

    Args:
        arguments: those of the command.
    """
    stderr = sys.stderr
    if stderr is None or not stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return
    if _IMMEDIATE & set(arguments):
        return
    stderr.write(_TEXT)
    stderr.flush()
    line = _Line(stderr)
    replaced = [_Stream(stderr, line)]
    sys.stderr = replaced[0]
    if sys.stdout is not None:
        replaced.append(_Stream(sys.stdout, line))
        sys.stdout = replaced[1]
    _kept.extend(replaced)
    atexit.register(line.erase)


class _Line:
    """The line on the terminal."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal
        self._is_shown = True

    def erase(self) -> None:
        """Erase the line if it is still there, and put the usual streams back."""
        if self._is_shown:
            self._is_shown = False
            self._terminal.write("\r\x1b[2K")
            self._terminal.flush()
        for name in ("stdout", "stderr"):
            if isinstance(stream := getattr(sys, name), _Stream):
                setattr(sys, name, stream.usual)


class _Stream:
    """A text stream that erases the line before its first output."""

    def __init__(self, usual: Any, line: _Line) -> None:
        self.usual = usual
        self._line = line

    def write(self, text: str) -> int:
        if text:
            self._line.erase()
        written: int = self.usual.write(text)
        return written

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.usual, name)
