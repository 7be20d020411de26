"""Output of a run: the log on stderr and in train.log, tables on stdout."""

import logging
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from laptime.record.files import LOG_FILE
from laptime.record.masking import mask_text

# Columns of tables that are not written to a terminal.
_WIDTH = 160


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current sys.stderr, which a progress bar replaces to keep log lines above the bar."""

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
    """Send the log to train.log, with time and rank in each line, and from rank 0 to stderr as well.

    Restores the previous logging setup afterwards.

    Args:
        secrets: texts to mask in all output.
        tag: prefix of each line on stderr, for several runs that write there.
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
    handlers_before, level_before, showwarning = root.handlers[:], root.level, warnings.showwarning
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        root.handlers[:] = handlers_before
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
    """Return a console on stdout for wide tables. It is as wide as the terminal, or has 160 columns without one."""
    return Console(width=None if sys.stdout is not None and sys.stdout.isatty() else _WIDTH)


def replace_unencodable() -> None:
    """Print a question mark for characters that the encoding of stdout or stderr lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def relative(path: Path) -> str:
    """Return a path relative to the current folder if it is inside that folder; otherwise the path itself."""
    is_inside = path != Path.cwd() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if is_inside else str(path)
