"""The heartbeat file of a run. It shows that the run is alive, also to other machines, which can't check its pid."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT_FILE = ".heartbeat"
INTERVAL_S = 2.0
# A run whose heartbeat is older than this is dead.
DEAD_AFTER_S = 10.0


@contextmanager
def keep_heartbeat(run_dir: Path) -> Iterator[None]:
    """Touch the heartbeat every INTERVAL_S seconds in a thread, and remove it at the end."""
    path = run_dir / HEARTBEAT_FILE
    ended = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):  # the disk may be full: other writes of the run report it
                path.touch()
            if ended.wait(INTERVAL_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            path.unlink()
