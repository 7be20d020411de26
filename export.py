"""`python export.py run=latest` does what `laptime export run=latest` does; see `python export.py --help`."""

import sys

from laptime import fast_start, starting

if __name__ == "__main__":
    fast_start.begin()
    starting.announce(sys.argv[1:])
    from laptime.exporting.main import main

    sys.exit(main())
