"""`tune_with_memory_limit.py BYTES ARGUMENTS`: laptime.tune with a limit on what it may take in memory beside what is loaded."""

import resource
import sys
from pathlib import Path

import laptime.runner.train  # what is loaded takes its share before
import laptime.tune.batch_size  # noqa: F401
from laptime.tune.__main__ import main

if __name__ == "__main__":
    (used,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    limit = int(used.split()[1]) * 1024 + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(main(sys.argv[2:]))
