"""Says on the terminal what a sweep is doing while it prepares many runs."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from laptime.text import counted

_QUIET_S = 2.0

Item = TypeVar("Item")


def with_notice(items: Sequence[Item], activity: str) -> Iterator[Item]:
    """Yield items. Once they have taken two seconds, print a line on stderr: `checking 1,000 runs ...`.

    The time of the first item does not count, because it may load torch.
    """
    print_at: float | None = None
    for number, item in enumerate(items):
        if number == 1:
            print_at = time.monotonic() + _QUIET_S
        elif print_at is not None and time.monotonic() > print_at:
            print(f"{activity} {counted(len(items), 'run', ',')} ...", file=sys.stderr, flush=True)
            print_at = None
        yield item
