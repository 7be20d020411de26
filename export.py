"""`python export.py run=latest` does what `laptime export run=latest` does; see `python export.py --help`."""

import sys

from laptime.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
