"""Loggers that fail stop logging; the training goes on, for run.json and epochs.csv hold all that counts."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.loggers import Logger

from laptime.errors import Interrupted, TrainingFailed, UserError, first_line
from laptime.extras import missing_package, not_installed
from laptime.ranks.stopping import TimeLimitReached
from laptime.text import escape_control_chars

log = logging.getLogger(__name__)

_WRITING = (
    "begin", "end", "log_metrics", "log_hyperparams", "log_graph", "log_image", "save", "finalize",
    "after_save_checkpoint",
)  # fmt: skip
# May come in the midst of writing, and say nothing of it.
RUN_ENDING_ERRORS = (UserError, TrainingFailed, Interrupted, TimeLimitReached)


def fail_safe(name: str, logger: Logger) -> Logger | None:
    """The same logger, which warns once where it fails, and writes nothing from then on; None: it can't begin.

    Of whatever kind the error is: trackers and their servers have many.

    Args:
        name: in the configuration's group.

    Raises:
        UserError: the package that it needs is not installed.
    """
    failed = False

    def guarded(write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def attempt(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                return write(*args, **kwargs)
            except RUN_ENDING_ERRORS:
                raise
            except Exception as error:
                failed = True
                _warn(name, error)
                return None

        return attempt

    try:
        if hasattr(type(logger), "experiment"):  # made when it is first asked for; Lightning asks before it trains
            _ = logger.experiment  # type: ignore[attr-defined]
    except RUN_ENDING_ERRORS:
        raise
    except Exception as error:
        if (package := missing_package(error)) is not None:
            raise UserError(f"logger.{name}: {not_installed(package)}") from error
        _warn(name, error)
        return None
    for method in _WRITING:
        if callable(write := getattr(logger, method, None)):
            setattr(logger, method, guarded(write))
    return logger


def _warn(name: str, error: Exception) -> None:
    reason = escape_control_chars(first_line(error))
    log.warning("logger.%s can't write (%s): the training goes on without it", name, reason)


@contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Don't show an error of TensorBoard's writer thread twice: it comes once more where the next value is logged.

    Other threads' errors go to whatever hook there was, which is there again afterwards. TensorBoard 2.21 hands the
    error on since https://github.com/tensorflow/tensorboard/issues/6167, and lets the thread end with it as well.
    """
    before = threading.excepthook

    def but_for_tensorboard(args: threading.ExceptHookArgs) -> None:
        if not (issubclass(args.exc_type, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    threading.excepthook = but_for_tensorboard
    try:
        yield
    finally:
        if threading.excepthook is but_for_tensorboard:
            threading.excepthook = before
