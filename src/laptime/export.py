"""`python -m laptime.export`, the older form of `laptime export`."""

import sys

from laptime import fast_start
from laptime.exporting.main import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    fast_start.begin()
    sys.exit(main())
