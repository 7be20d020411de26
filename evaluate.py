"""`python evaluate.py run=latest` does what `laptime evaluate run=latest` does; see `python evaluate.py --help`."""

import sys

from laptime.evaluation.main import main

if __name__ == "__main__":
    sys.exit(main())
