"""Makes loggers fail-safe: a logger that fails stops logging, and the training continues. run.json has the results."""

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

_WRITING_METHODS = (
    "begin", "end", "log_metrics", "log_hyperparams", "log_graph", "log_image", "save", "finalize",
    "after_save_checkpoint",
)  # fmt: skip
# These may be raised while a logger writes, but are not errors of the logger.
_RUN_ENDING_ERRORS = (UserError, TrainingFailed, Interrupted, TimeLimitReached)


def fail_safe(name: str, logger: Logger) -> Logger | None:
    """Make a logger warn once at its first error of any kind, and write nothing from then on.

    Args:
        name: the logger's name in the config group.

    Returns:
        The same logger; None: it can't be started.

    Raises:
        UserError: its package is not installed.
    """
    failed = False

    def guard(write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def attempt(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                return write(*args, **kwargs)
            except _RUN_ENDING_ERRORS:
                raise
            except Exception as error:
                failed = True
                _warn(name, error)
                return None

        return attempt

    try:
        if hasattr(type(logger), "experiment"):  # created on first access; Lightning accesses it before it trains
            _ = logger.experiment  # type: ignore[attr-defined]
    except _RUN_ENDING_ERRORS:
        raise
    except Exception as error:
        if (package := missing_package(error)) is not None:
            raise UserError(f"logger.{name}: {not_installed(package)}") from error
        _warn(name, error)
        return None
    for method in _WRITING_METHODS:
        if callable(write := getattr(logger, method, None)):
            setattr(logger, method, guard(write))
    return logger


def _warn(name: str, error: Exception) -> None:
    reason = escape_control_chars(first_line(error))
    log.warning("logger.%s can't write (%s): the training continues without it", name, reason)


@contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Hide errors of TensorBoard's writer thread, which are raised again when the next value is logged.

    Errors of other threads go to the previous hook, which is restored afterwards. TensorBoard 2.21 passes the error on
    since https://github.com/tensorflow/tensorboard/issues/6167, but also ends the thread with it.
    """
    previous_hook = threading.excepthook

    def ignore_tensorboard(args: threading.ExceptHookArgs) -> None:
        if not (issubclass(args.exc_type, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            previous_hook(args)

    threading.excepthook = ignore_tensorboard
    try:
        yield
    finally:
        if threading.excepthook is ignore_tensorboard:
            threading.excepthook = previous_hook
