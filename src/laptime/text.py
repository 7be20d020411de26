"""Formats sizes, times, counts, lists, untrusted text and operating system errors."""

import errno
from collections.abc import Iterable, Sequence
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB")
# What to do when a process can't open more files, pipes or sockets.
MORE_FILES = "Raise the limit (ulimit -n 4096), or use fewer ranks or a smaller dataset.num_workers."


def byte_size(num_bytes: float, unit: str | None = None, decimals: int = 1) -> str:
    """Format a size in powers of ten: `12 MB`, `1.5 GB`.

    Args:
        unit: B, kB, MB, GB or TB; None: the largest in which the size is at least 1.
        decimals: number of digits after the point; without a unit, only GB and TB have them.
    """
    if unit is not None:
        return f"{num_bytes / 1000 ** _UNITS.index(unit):.{decimals}f} {unit}"
    for smaller in _UNITS[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.{0 if smaller != 'GB' else decimals}f} {smaller}"
        num_bytes /= 1000
    return f"{num_bytes:.{decimals}f} {_UNITS[-1]}"


def binary_size(num_bytes: float) -> str:
    """Format a size of memory or a cache in powers of two, with three digits: `48 KiB`, `15.6 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes / 2**10:.3g} KiB"


def duration(seconds: float) -> str:
    """Format a rounded time: `8 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """Format a time as a clock shows it: `0:08`, `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def counted(number: float, noun: str, layout: str = "") -> str:
    """Format a number with a noun: `1 epoch`, `2 epochs`.

    Args:
        noun: the noun in the singular.
        layout: format of the number, e.g. `,` for `2,000`.
    """
    return f"{number:{layout}} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float) -> str:
    """Format a fraction in percent, with a decimal below 1%: `42%`, `0.4%`."""
    return f"{fraction:.1%}" if fraction < 0.0095 else f"{fraction:.0%}"


def join_nonempty(parts: Iterable[Any]) -> str:
    """Join the parts that are not empty: `first, second`."""
    return ", ".join(str(part) for part in parts if part)


def join_first_three(parts: Sequence[str]) -> str:
    """Join the first three parts, and count the others: `first; second; third, and 2 more`."""
    more = f", and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"{'; '.join(parts[:3])}{more}"


def short_name(key: str) -> str:
    """Shorten a dotted key for labels of runs: `ws` for strategy.world_size, otherwise the last part of the key."""
    return "ws" if key == "strategy.world_size" else key.rpartition(".")[2]


def escape_control_chars(text: str) -> str:
    """Escape control characters and line breaks in a text, so that it can't control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def format_os_error(error: OSError) -> str:
    """Format the file and the reason of an error of the system: `outputs/run.json: No space left on device.`"""
    file = f"{error.filename}: " if error.filename else ""
    advice = f" {MORE_FILES}" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return f"{file}{str(error.strerror or error).rstrip('.')}.{advice}"
