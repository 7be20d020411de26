"""What a command does while it loads PyTorch, which takes seconds: it shows on a terminal that it is starting, and ends
at once on Ctrl-C. Other output replaces the line."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

_TEXT = "laptime: starting ..."
# Commands with one of these print at once, or into a shell's completion.
_IMMEDIATE = {"--version", "-sc", "--shell-completion"}

# print() crashes if the stream in which it writes is deleted meanwhile: https://github.com/python/cpython/issues/130163
_kept: list[Any] = []
_shown: "_Line | None" = None
_usual_handlers: dict[signal.Signals, Any] = {}


def announce(arguments: Sequence[str]) -> None:
    """Show the line, if stderr is a terminal that can erase it. Until `hand_over`, a signal ends the process at once.

    Args:
        arguments: those of the command.
    """
    _end_on_signals()
    stderr = sys.stderr
    if stderr is None or not stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return
    if _IMMEDIATE & set(arguments):
        return
    stderr.write(_TEXT)
    stderr.flush()
    global _shown
    _shown = line = _Line(stderr)
    replaced = [_Stream(stderr, line)]
    sys.stderr = replaced[0]
    if sys.stdout is not None:
        replaced.append(_Stream(sys.stdout, line))
        sys.stdout = replaced[1]
    _kept.extend(replaced)
    atexit.register(line.erase)


def _end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the process. Python would raise KeyboardInterrupt instead, which some packages catch
    while they are imported."""
    if threading.current_thread() is not threading.main_thread():
        return
    for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(signum) == usual:
            _usual_handlers[signum] = signal.signal(signum, _end)


def _end(signum: int, frame: Any) -> None:
    erase()
    os._exit(128 + signum)


def hand_over() -> None:
    """Let signals have their usual effect from now on, because the command begins to write files."""
    while _usual_handlers:
        signal.signal(*_usual_handlers.popitem())


def erase() -> None:
    """Erase the line now, because another process will write to the terminal."""
    if _shown is not None:
        _shown.erase()


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
