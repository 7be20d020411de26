"""A sign of life in a run's directory, for whoever watches it: also from another machine, where pids say nothing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT_FILE = ".heartbeat"
INTERVAL_S = 2.0
# A run that has not been heard of for so long is dead.
DEAD_AFTER_S = 10.0


@contextmanager
def keep_heartbeat(run_dir: Path) -> Iterator[None]:
    """Touch the run's heartbeat every two seconds, by a thread of its own; it is gone when the run has ended."""
    path = run_dir / HEARTBEAT_FILE
    over = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):  # a full disk: the run itself says so
                path.touch()
            if over.wait(INTERVAL_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            path.unlink()
