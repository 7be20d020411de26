"""`python -m laptime.evaluate`, the older form of `laptime evaluate`."""

from laptime.command_line import run_command
from laptime.evaluation.main import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    run_command(main)
