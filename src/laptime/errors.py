"""The ways a run can end without completing. Any other exception is a bug and keeps its traceback."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from laptime.text import escape_control_chars, format_os_error


class UserError(Exception):
    """A user's mistake, in one or two lines: `key=value: the rule it breaks. What to do instead.`"""

    exit_code = 2


class RunFailed(Exception):
    """The run failed, and its log says why."""

    exit_code = 1


class TrainingFailed(RunFailed):
    """The training failed, though its configuration is valid.

    Args:
        message: what happened.
        epoch, step: the position in the training, both from 0; None: not known.
    """

    def __init__(self, message: str, epoch: int | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


class Interrupted(BaseException):
    """A signal asked the run to end. Like KeyboardInterrupt, `except Exception` doesn't catch it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


class LauncherFailed(BaseException):
    """Hydra's launcher failed, and its runs with it. No Exception, because Hydra would print its traceback.

    Args:
        error: the exception that the launcher raised.
    """

    def __init__(self, error: Exception) -> None:
        reason = escape_control_chars(first_line(error)).partition(". ")[0].rstrip(".") or type(error).__name__
        super().__init__(f"the launcher failed; the runs it had started were aborted: {reason}.")


@contextmanager
def launcher_errors() -> Iterator[None]:
    """Raise LauncherFailed for an exception of a launcher plugin. Jobs catch their own exceptions."""
    try:
        yield
    except Exception as error:
        raise LauncherFailed(error) from error


# PyTorch's CPU allocator raises a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|out of memory|Cannot allocate memory|bad_alloc", re.I
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system or the device was out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError | RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Discard further output when the reader of stdout has gone, e.g. in `laptime ... | head`."""
    try:
        yield
        if sys.stdout is not None:  # it was closed when the process started
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # rich raises SystemExit for a broken pipe
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code_of(work: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    A user's mistake or an error of the system (e.g. a full disk) becomes one line on stderr. HYDRA_FULL_ERROR=1 shows
    the traceback instead.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except (UserError, TrainingFailed, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = format_os_error(error) if isinstance(error, OSError) else str(error)
        print(f"error: {message}", file=sys.stderr)
        return 1 if isinstance(error, OSError) else error.exit_code
    finally:
        with ignore_broken_pipe():  # argparse's help is still in the buffer of stdout
            pass
