"""Overrides, parsed with Hydra's own grammar. No other module splits an override by hand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride

from laptime.record.override_text import split

# Number of overrides to keep, for sweeps with thousands of runs.
_CACHE_SIZE = 2**15


@dataclass(frozen=True)
class Override:
    """One override: `key=value`, `+key=value`, `++key=value`, `~key`, `group@package=option`.

    If Hydra's grammar rejects the text, it is split at its first =.

    Attributes:
        text: as typed.
        prefix: `+`, `++`, `~` or empty.
        key: a full key, or a group: `training.epochs`, `hydra/launcher`.
        package: the part after the @; None: there is none.
        value_text: the part after the =, as typed; None: there is no =.
        parsed: Hydra's own object; None: its grammar rejects the text.
        error: Hydra's error in this case.
    """

    text: str
    prefix: str
    key: str
    package: str | None
    value_text: str | None
    parsed: HydraOverride | None = field(compare=False, repr=False)
    error: Exception | None = field(default=None, compare=False, repr=False)

    @property
    def full_key(self) -> str:
        """The key, with the package if it has one."""
        return self.key if self.package is None else f"{self.key}@{self.package}"

    @property
    def is_addition(self) -> bool:
        return self.prefix.startswith("+")

    @property
    def is_deletion(self) -> bool:
        return self.prefix.startswith("~")

    @property
    def is_hydra_key(self) -> bool:
        """Whether it sets a key or group of Hydra itself."""
        return self.key.startswith(("hydra.", "hydra/"))

    @property
    def is_swept(self) -> bool:
        """Whether it has several values, to sweep over."""
        return self.parsed is not None and bool(self.parsed.is_sweep_override())

    @property
    def value(self) -> Any:
        """The parsed value; None: null, several values, or rejected by Hydra's grammar."""
        return None if self.parsed is None or self.is_swept else self.parsed.value()

    def with_value(self, value_text: str) -> str:
        """The text of this override with another value."""
        return f"{self.prefix}{self.full_key}={value_text}"


@lru_cache(maxsize=_CACHE_SIZE)
def parse(text: str) -> Override:
    """Parse an override. Results are cached, because the grammar takes up to a millisecond."""
    prefix, full_key, value = split(text)
    key, at, package = full_key.partition("@")
    parsed, error = None, None
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
        key, package, at = parsed.key_or_group, parsed.package or "", "" if parsed.package is None else "@"
    except Exception as grammar_error:  # of many classes, also ANTLR's and Python's
        error = grammar_error.with_traceback(None)
    return Override(text, prefix, key, package if at else None, value, parsed, error)


def clear_parse_cache() -> None:
    """Free the memory of `parse`'s cache: a process may make many runs, each with other overrides."""
    parse.cache_clear()


def key_of(text: str) -> str:
    """The key or group that an override sets: `training.epochs` for `+training.epochs=3`."""
    return parse(text).key


def find(texts: Iterable[str], *keys: str) -> Override | None:
    """The first override of one of these keys."""
    return next((override for override in map(parse, texts) if override.key in keys), None)


def find_last(texts: Sequence[str], *keys: str) -> Override | None:
    """The last override of one of these keys, which is the one that takes effect."""
    return find(reversed(texts), *keys)


def first_invalid(texts: Iterable[str]) -> Override | None:
    """The first override that Hydra's grammar rejects."""
    return next((override for override in map(parse, texts) if override.parsed is None), None)


def as_hydra(texts: Iterable[str], config_loader: ConfigLoader | None = None) -> list[HydraOverride]:
    """Hydra's own objects, which can list the values of a sweep.

    Args:
        texts: valid overrides; `first_invalid` finds others.
        config_loader: lists the options of a group for `group=glob(*)`.
    """
    parsed = [override.parsed for override in map(parse, texts)]
    return [replace(override, config_loader=config_loader) for override in parsed if override is not None]
