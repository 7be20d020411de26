"""Searches that hydra-optuna-sweeper 1.3 would end with a traceback: those in which trials failed, which end as others
do, and those that it can't begin."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher

from laptime.errors import launcher_errors


class SearchRefused(BaseException):
    """A search that can't begin, and why. Hydra would print a traceback of an exception."""


@contextmanager
def patched() -> Iterator[None]:
    """While it lasts, a grid may end with a trial that failed, and every trial of a search may fail.

    Raises:
        SearchRefused: the sweeper could not begin with what it was told.
    """
    try:
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
        from optuna import logging as optuna_logging
        from optuna.samplers import GridSampler
    except ImportError:  # another sweeper that chooses
        yield
        return
    after_trial, sweep = GridSampler.after_trial, OptunaSweeper.sweep

    def count_no_trials(*args: Any) -> None:
        """The sweeper counts them itself. The sampler would call Study.stop(), which Optuna refuses to a sweeper.

        Seen with Optuna 2.10: https://github.com/optuna/optuna/issues/5141
        """

    # hydra-optuna-sweeper 1.3 asks for the best trial where none is completed, and Hydra 1.3 prints a launcher's error
    # with its traceback. Not reported upstream.
    def sweep_without_best(self: Any, arguments: list[str]) -> None:
        launcher = type(self.sweeper.launcher)  # the class's, for launchers send themselves to other processes
        launch = launcher.launch
        if launcher is not BasicLauncher:
            launcher.launch = launcher_errors()(launch)
        try:
            sweep(self, arguments)
        except Exception as error:
            if not self.sweeper.job_idx:
                storage = f"hydra.sweeper.storage={self.sweeper.storage}: " if self.sweeper.storage else ""
                reason = str(error).partition("\n")[0] or f"{type(error).__name__}, with nothing said of why"
                raise SearchRefused(f"{storage}Optuna's sweeper can't begin: {reason}") from error
            if "No trials are completed yet" not in str(error):
                raise
        finally:
            launcher.launch = launch

    sweeper_log = logging.getLogger("hydra_plugins.hydra_optuna_sweeper")
    verbosity, level = optuna_logging.get_verbosity(), sweeper_log.level
    optuna_logging.set_verbosity(optuna_logging.WARNING)
    sweeper_log.setLevel(logging.CRITICAL)  # which trials failed, and why, is said by the sweep
    GridSampler.after_trial, OptunaSweeper.sweep = count_no_trials, sweep_without_best  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        GridSampler.after_trial, OptunaSweeper.sweep = after_trial, sweep  # type: ignore[method-assign]
        optuna_logging.set_verbosity(verbosity)
        sweeper_log.setLevel(level)
