"""The command `laptime`: its subcommands, its help, and shell completion. `train.run` trains from Python."""

from typing import TYPE_CHECKING, Any

from laptime.cli.dispatch import main

if TYPE_CHECKING:
    from laptime.cli.train import run

__all__ = ["main", "run"]


def __getattr__(name: str) -> Any:
    if name != "run":  # loaded when it is used: it needs Hydra
        raise AttributeError(f"module 'laptime.cli' has no attribute {name!r}")
    from laptime.cli.train import run

    return run
