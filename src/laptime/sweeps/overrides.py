"""Merges the overrides of a resumed sweep: those of the current command line, and those that started the sweep."""

from collections.abc import Sequence

from laptime.config import security
from laptime.config.overrides import Override, first_invalid, parse
from laptime.config.quoting import how_to_quote
from laptime.errors import UserError, first_line

KEY = "sweep.resume"

# A resumed sweep can't change these.
FIXED = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir", "hydra.mode", "hydra/sweeper")


def persistent_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that still apply when a run or a sweep is resumed."""
    # Overrides of `hydra.*` are dropped: Hydra imports classes and sets variables by them, so no file may give them.
    # `security.allowed_targets` is kept, so that the check refuses it if it is not on the command line again.
    dropped = {*security.PER_INVOCATION_KEYS} - {security.KEY}
    return [
        override.text for override in map(parse, overrides) if override.key not in dropped and not override.is_hydra_key
    ]


def is_per_invocation(override: str) -> bool:
    """Whether an override applies to this command only and doesn't change the jobs, e.g. launcher or notification."""
    parsed = parse(override)
    return parsed.key in security.PER_INVOCATION_KEYS or (parsed.is_hydra_key and parsed.key not in FIXED)


def split_resume_override(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of `sweep.resume` (None: not set), and the other overrides.

    Raises:
        UserError: the value is not one directory.
    """
    resume_overrides = [
        override for override in map(parse, overrides) if override.key == KEY and not override.is_deletion
    ]
    others = [override for override in overrides if parse(override) not in resume_overrides]
    if not resume_overrides:
        return None, others
    last = resume_overrides[-1]
    if last.parsed is None:
        raise UserError(f"{last.text}: not understood. {how_to_quote(last.text)}") from last.error
    if last.is_swept:
        raise UserError(f"{last.text}: only one sweep can be resumed at a time. Give one value.")
    return (None if last.value is None else str(last.value)), others


def merge_overrides(earlier_overrides: Sequence[str], cli_overrides: Sequence[str]) -> list[str]:
    """Merge two lists of overrides. Later overrides replace earlier ones of the same key or group.

    An override that replaces an addition (`+key=...`) becomes an addition. A deletion (`~key`) removes it.
    """
    invalid = first_invalid([*earlier_overrides, *cli_overrides])
    if invalid is not None and invalid.error is not None:
        raise UserError(
            f"{first_line(invalid.error)}. Use group=option or key=value. "
            "Quote a value that has special characters: 'key=\"...\"'."
        ) from invalid.error
    result: dict[str, Override] = {}
    for override in map(parse, [*earlier_overrides, *cli_overrides]):
        key = override.full_key
        earlier = result.get(key)
        if earlier is not None and earlier.prefix == "+":
            if override.is_deletion:
                del result[key]
                continue
            if not override.is_addition:
                override = parse(f"+{override.text}")
        result[key] = override
    return [override.text for override in result.values()]
