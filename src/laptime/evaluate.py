"""python -m laptime.evaluate: test accuracy, confusion matrix, per-class table and latency of a trained run."""

import sys

from laptime.evaluation.main import main

if __name__ == "__main__":
    sys.exit(main())
