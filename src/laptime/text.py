"""How sizes, times, counts, lists, other people's text and the system's errors are worded."""

import errno
from collections.abc import Iterable, Sequence
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB")
# What to do where a process may have no more files, pipes and sockets.
MORE_FILES = "Raise the limit (ulimit -n 4096), or use fewer ranks or a smaller dataset.num_workers."


def byte_size(num_bytes: float, unit: str | None = None, decimals: int = 1) -> str:
    """In powers of ten: `12 MB`, `1.5 GB`.

    Args:
        num_bytes: bytes.
        unit: B, kB, MB, GB or TB; None: the largest that leaves at least 1.
        decimals: digits after the point; where no unit is given, from GB upwards.
    """
    if unit is not None:
        return f"{num_bytes / 1000 ** _UNITS.index(unit):.{decimals}f} {unit}"
    for smaller in _UNITS[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.{0 if smaller != 'GB' else decimals}f} {smaller}"
        num_bytes /= 1000
    return f"{num_bytes:.{decimals}f} {_UNITS[-1]}"


def binary_size(num_bytes: float) -> str:
    """In powers of two, as memory and caches are sold: `48 KiB`, `15.6 GiB`. Three digits."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes / 2**10:.3g} KiB"


def duration(seconds: float) -> str:
    """Rounded: `8 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """As a clock shows it: `0:08`, `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def counted(number: float, noun: str, layout: str = "") -> str:
    """`1 epoch`, `2 epochs`.

    Args:
        number: how many.
        noun: what, one of them.
        layout: of the number, as in `format`: `,` for `2,000`.
    """
    return f"{number:{layout}} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share of 1 as whole percents, below one with a decimal: `42%`, `0.4%`."""
    return f"{share:.1%}" if share < 0.0095 else f"{share:.0%}"


def join_nonempty(parts: Iterable[Any]) -> str:
    """`one, other`: those that are not empty."""
    return ", ".join(str(part) for part in parts if part)


def join_first_three(parts: Sequence[str]) -> str:
    """`one; other; third, and 2 more`."""
    more = f", and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"{'; '.join(parts[:3])}{more}"


def short_name(key: str) -> str:
    """A dotted key as labels of runs have it: `ws` for strategy.world_size, else the last part of it."""
    return "ws" if key == "strategy.world_size" else key.rpartition(".")[2]


def escape_control_chars(text: str) -> str:
    """Somebody's text without characters that steer a terminal or break a line: they are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def format_os_error(error: OSError) -> str:
    """What the system refused, and where: `outputs/run.json: No space left on device.`"""
    where = f"{error.filename}: " if error.filename else ""
    instead = f" {MORE_FILES}" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return f"{where}{str(error.strerror or error).rstrip('.')}.{instead}"
