"""`python evaluate.py run=latest` does what `laptime evaluate run=latest` does; see `python evaluate.py --help`."""

import sys

from laptime import fast_start

if __name__ == "__main__":
    fast_start.begin()
    from laptime.evaluation.main import main

    sys.exit(main())
