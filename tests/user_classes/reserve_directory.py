"""A script that reserves a sweep's directory as a sweep does, and ends."""

import sys
from pathlib import Path

from laptime.record.directory import claim

if __name__ == "__main__":
    claim(Path(sys.argv[1]))
