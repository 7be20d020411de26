"""A trained network as a file for elsewhere: `python export.py run=latest`, see `python export.py --help`."""

import sys

from laptime.exporting.main import main

if __name__ == "__main__":
    sys.exit(main())
