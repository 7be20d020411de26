"""train.py where a process may have 64 files open, unless it asks for more."""

import resource
import runpy
from pathlib import Path

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
