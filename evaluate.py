"""`python evaluate.py run=latest` does what `laptime evaluate run=latest` does; see `python evaluate.py --help`."""

import sys

from laptime import fast_start, starting

if __name__ == "__main__":
    fast_start.begin()
    starting.announce(sys.argv[1:])
    from laptime.evaluation.main import main

    sys.exit(main())
