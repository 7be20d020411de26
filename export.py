"""`python export.py run=latest` does what `laptime export run=latest` does; see `python export.py --help`."""

import sys

from laptime.exporting.main import main

if __name__ == "__main__":
    sys.exit(main())
