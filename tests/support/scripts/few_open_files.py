"""train.py with a soft limit of 64 open files, which a process may raise."""

import resource
import runpy
from pathlib import Path

_, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard_limit))
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
