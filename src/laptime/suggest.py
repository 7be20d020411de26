"""The known name that a mistyped one is closest to: for commands, options, keys, groups and arguments."""

import difflib
from collections.abc import Iterable

# Longer lists hide the message.
_MOST_LISTED = 30


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is nearest to another, whatever the case of their letters; None: none is near.

    Args:
        cutoff: the least similarity, from 0 to 1.
    """
    by_lower_case = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[close[0]] if close else None


def listed(known: Iterable[str]) -> str:
    """Known names, the first of them where there are many."""
    names = list(known)
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"{', '.join(names[:_MOST_LISTED])}{more}"
