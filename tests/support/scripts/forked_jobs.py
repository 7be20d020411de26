"""train.py in which joblib forks the processes of its jobs, because each new interpreter takes seconds to import torch.

Everything else is joblib's: its pool, the messages to its processes, and the error when a process was killed.
"""

import runpy
from collections.abc import Mapping, Sequence
from multiprocessing import util
from pathlib import Path

from joblib.externals.loky.backend import fork_exec


def fork_instead(command: Sequence[str], descriptors: Sequence[int], env: Mapping[str, str] | None = None) -> int:
    """loky's fork_exec of `python -m MODULE ARGUMENTS`, by a fork as in tests/support/warm_server.py."""
    module, *arguments = command[2:]
    code = (
        "import os, runpy, sys\n"
        f"os.environ.update({dict(env or {})!r})\n"
        f"sys.argv = {[module, *arguments]!r}\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return util.spawnv_passfds(b"", [code], descriptors)


fork_exec.fork_exec = fork_instead
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
