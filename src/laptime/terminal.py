"""What a run says: the log on stderr and in train.log, the table of results on stdout."""

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from laptime.record.files import LOG_FILE
from laptime.record.masking import mask_text

# Where no terminal says how wide it is.
_WIDTH = 160


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is sys.stderr now: a progress bar puts itself there and keeps the lines above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("always sys.stderr")


class _WithoutSecrets(logging.Formatter):
    def __init__(self, secrets: Collection[str], layout: str, date_layout: str | None = None) -> None:
        super().__init__(layout, date_layout)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record), self._secrets)


@contextmanager
def logging_to(
    run_dir: Path, rank: int = 0, level: int = logging.INFO, secrets: Collection[str] = (), tag: str = ""
) -> Iterator[None]:
    """Send the log to train.log, lines tagged with time and rank, and from rank 0 to stderr as well.

    What was set up before comes back afterwards.

    Args:
        secrets: are masked wherever the log goes.
        tag: before each line on stderr, where several runs write there.
    """
    file = logging.FileHandler(run_dir / LOG_FILE, encoding="utf-8", delay=True)
    layout = f"[%(asctime)s][rank {rank}][%(levelname)s][%(name)s] %(message)s"
    file.setFormatter(_WithoutSecrets(secrets, layout))
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        stderr = StderrHandler()
        stderr.setFormatter(_WithoutSecrets(secrets, f"[%(asctime)s] {tag}%(levelprefix)s%(message)s", "%H:%M:%S"))
        stderr.addFilter(_add_level_prefix)
        handlers.append(stderr)
    root = logging.getLogger()
    before, level_before, showwarning = root.handlers[:], root.level, warnings.showwarning
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)
        warnings.showwarning = showwarning
        file.close()


def _add_level_prefix(record: logging.LogRecord) -> bool:
    record.levelprefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
    return True


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    logging.getLogger("py.warnings").warning("%s (%s:%d)", message, Path(filename).name, lineno)


def wide_console() -> Console:
    """For a table with many columns, on stdout: as wide as the terminal; where there is none, as it needs to be."""
    return Console(width=None if sys.stdout is not None and sys.stdout.isatty() else _WIDTH)


def replace_unencodable() -> None:
    """Let a terminal that has no Unicode show a question mark where it lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """What is printed within may find nobody who reads it (`| head`): that is no failure, and the rest goes nowhere."""
    try:
        yield
        if sys.stdout is not None:  # as where it was closed from the start
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # rich ends the process for it
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def relative(path: Path) -> str:
    """A path as one would type it here."""
    below_here = path != Path.cwd() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if below_here else str(path)
