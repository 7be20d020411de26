"""`python evaluate.py run=latest` does what `laptime evaluate run=latest` does; see `python evaluate.py --help`."""

import sys

from laptime.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
