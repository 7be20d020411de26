"""Suggests the correct name for a mistyped command, option, key, group or argument."""

import difflib
from collections.abc import Iterable

# Longer lists hide the message.
_MOST_LISTED = 30


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to another, ignoring case; None: none is similar enough.

    Args:
        cutoff: the minimum similarity, from 0 to 1.
    """
    by_lower_case = {name.lower(): name for name in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[close[0]] if close else None


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.7, prefix: str = "") -> str:
    """Return `Did you mean --once?`; empty: no known name is similar enough.

    Args:
        cutoff: the minimum similarity, from 0 to 1.
        prefix: what precedes a known name where it is typed, like `model=`.
    """
    near = closest(name, names, cutoff)
    return f"Did you mean {prefix}{near}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Return the known names as text. A long list is cut."""
    names = list(names)
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"{', '.join(names[:_MOST_LISTED])}{more}"
