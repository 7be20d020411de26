"""A script that imports everything, limits the further memory of its process, and then trains.

`limited_memory.py BYTES OVERRIDES`
"""

import resource
import sys

import psutil

import laptime
import laptime.runner.train

if __name__ == "__main__":
    limit = psutil.Process().memory_info().vms + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    laptime.run(sys.argv[2:])
