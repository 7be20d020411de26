"""train.py with the temporary folder that TMPDIR names. The warm server has already cached another one."""

import runpy
import tempfile
from pathlib import Path

tempfile.tempdir = None
assert len(tempfile.gettempdir()) > 100, tempfile.gettempdir()
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
