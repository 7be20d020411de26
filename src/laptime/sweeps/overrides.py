"""What is typed to resume a sweep, beside what it was started with."""

from collections.abc import Sequence

from laptime.config import security
from laptime.config.overrides import Override, first_invalid, parse
from laptime.config.quoting import how_to_quote
from laptime.errors import UserError, first_line

KEY = "sweep.resume"

# A resumed sweep keeps these.
FIXED = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir", "hydra.mode", "hydra/sweeper")


def persistent_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that still hold when a run, or a sweep, is resumed."""
    # Hydra imports what its own part names, and sets variables by it: no file's matter. What may be named is checked
    # against what is typed now, so that it isn't lost without a word.
    left_out = {*security.PER_INVOCATION_KEYS} - {security.KEY}
    return [each.text for each in map(parse, overrides) if each.key not in left_out and not each.is_hydra_key]


def is_per_invocation(override: str) -> bool:
    """Whether it is said anew each time, and makes no other jobs: how they are launched, and who is told."""
    parsed = parse(override)
    return parsed.key in security.PER_INVOCATION_KEYS or (parsed.is_hydra_key and parsed.key not in FIXED)


def split_resume_override(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `sweep.resume` was set to, None: it was not, and the other overrides.

    Raises:
        UserError: it is not one directory.
    """
    resuming = [each for each in map(parse, overrides) if each.key == KEY and not each.is_deletion]
    rest = [override for override in overrides if parse(override) not in resuming]
    if not resuming:
        return None, rest
    own = resuming[-1]
    if own.parsed is None:
        raise UserError(f"{own.text}: not understood. {how_to_quote(own.text)}") from own.error
    if own.is_swept:
        raise UserError(f"{own.text}: one sweep at a time can be resumed. Give one value.")
    return (None if own.value is None else str(own.value)), rest


def merge_overrides(before: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Overrides of which later ones replace earlier ones of the same key or group.

    What replaces an addition (`+key=...`) is one itself, and taking it away (`~key`) leaves nothing.
    """
    refused = first_invalid([*before, *typed])
    if refused is not None and refused.error is not None:
        raise UserError(
            f"{first_line(refused.error)}. Use group=option or key=value; a value with special characters takes "
            "quotes of its own: 'key=\"...\"'."
        ) from refused.error
    result: dict[str, Override] = {}
    for override in map(parse, [*before, *typed]):
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
