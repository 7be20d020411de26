"""A script that reserves the directory of a sweep and exits."""

import sys
from pathlib import Path

from laptime.record.directory import claim

if __name__ == "__main__":
    claim(Path(sys.argv[1]))
