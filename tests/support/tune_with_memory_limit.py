"""laptime.tune with a limit on the memory that it may allocate after its imports.

`tune_with_memory_limit.py BYTES ARGUMENTS`
"""

import resource
import sys
from pathlib import Path

import laptime.runner.train  # imported before the limit is set
import laptime.tune.batch_size  # noqa: F401
from laptime.tune.__main__ import main

if __name__ == "__main__":
    (used,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    limit = int(used.split()[1]) * 1024 + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(main(sys.argv[2:]))
