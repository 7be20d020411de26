"""What a trained run gets right, and how fast: `python evaluate.py run=latest`, see `python evaluate.py --help`."""

import sys

from laptime.evaluation.main import main

if __name__ == "__main__":
    sys.exit(main())
