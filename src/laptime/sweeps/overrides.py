"""What is typed to resume a sweep, beside what it was started with."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from laptime.config import security
from laptime.config.composition import key_of
from laptime.config.typed import how_to_quote
from laptime.errors import UserError, first_line

KEY = "sweep.resume"

# A resumed sweep keeps these.
FIXED = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir", "hydra.mode", "hydra/sweeper")


def lasting(overrides: Sequence[str]) -> list[str]:
    """The overrides that still hold when a run, or a sweep, is resumed."""
    # Hydra imports what its own part names, and sets variables by it: no file's matter. What may be named is checked
    # against what is typed now, so that it isn't lost without a word.
    left_out = {*security.OF_NOW} - {security.KEY}
    return [
        each for each in overrides if key_of(each) not in left_out and not key_of(each).startswith(("hydra.", "hydra/"))
    ]


def is_of_now(override: str) -> bool:
    """Whether it is said anew each time, and makes no other jobs: how they are launched, and who is told."""
    key = key_of(override)
    return key in security.OF_NOW or (key.startswith(("hydra.", "hydra/")) and key not in FIXED)


def asked_for(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `sweep.resume` was set to, None: it was not, and the other overrides.

    Raises:
        UserError: it is not one directory.
    """
    own = [override for override in overrides if override.lstrip("+").partition("=")[0] == KEY]
    rest = [override for override in overrides if override not in own]
    if not own:
        return None, rest
    try:
        (value,) = OverridesParser.create().parse_overrides(own[-1:])
    except HydraException as error:
        raise UserError(f"{own[-1]}: not understood. {how_to_quote(own[-1])}") from error
    if value.is_sweep_override():
        raise UserError(f"{own[-1]}: one sweep at a time can be resumed. Give one value.")
    return (None if value.value() is None else str(value.value())), rest


def merged(before: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Overrides of which later ones replace earlier ones of the same key or group.

    What replaces an addition (`+key=...`) is one itself, and taking it away (`~key`) leaves nothing.
    """
    parser = OverridesParser.create()
    result: dict[str, Override] = {}
    try:
        for override in parser.parse_overrides([*before, *typed]):
            key = override.get_key_element().lstrip("+~")
            earlier = result.get(key)
            if earlier is not None and earlier.is_add():
                if override.is_delete():
                    del result[key]
                    continue
                if not override.is_add() and not override.is_force_add():
                    (override,) = parser.parse_overrides([f"+{override.input_line}"])
            result[key] = override
    except HydraException as error:
        raise UserError(
            f"{first_line(error)}. Use group=option or key=value; a value with special characters takes "
            "quotes of its own: 'key=\"...\"'."
        ) from error
    return [str(override.input_line) for override in result.values()]
