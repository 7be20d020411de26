"""`python -m laptime.evaluate`, the older form of `laptime evaluate`."""

import sys

from laptime import fast_start
from laptime.evaluation.main import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    fast_start.begin()
    sys.exit(main())
