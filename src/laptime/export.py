"""`python -m laptime.export`, the older form of `laptime export`."""

from laptime.command_line import run_command
from laptime.exporting.main import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    run_command(main)
