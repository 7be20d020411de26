"""Overrides, each parsed once with Hydra's own grammar. Nothing else takes one apart by hand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride

from laptime.record.override_text import split

# A sweep may have so many, most of them alike.
_MOST_KEPT = 2**15


@dataclass(frozen=True)
class Override:
    """One override: `key=value`, `+key=value`, `++key=value`, `~key`, `group@package=option`.

    If Hydra's grammar rejects the text, the parts are those before and after its first =.

    Attributes:
        text: as typed.
        prefix: +, ++, ~ or nothing.
        key: a full key, or a group: `training.epochs`, `hydra/launcher`.
        package: what follows the @ of a group; None: there is none.
        value_text: what follows the =, as typed; None: there is no =.
        parsed: as Hydra parses it; None: its grammar doesn't take it.
        error: what Hydra says then.
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
        """What it sets: the key, and the package if it has one."""
        return self.key if self.package is None else f"{self.key}@{self.package}"

    @property
    def is_addition(self) -> bool:
        return self.prefix.startswith("+")

    @property
    def is_deletion(self) -> bool:
        return self.prefix.startswith("~")

    @property
    def is_hydra_key(self) -> bool:
        """Whether it sets something of Hydra's own part."""
        return self.key.startswith(("hydra.", "hydra/"))

    @property
    def is_swept(self) -> bool:
        """Whether it stands for several values."""
        return self.parsed is not None and bool(self.parsed.is_sweep_override())

    @property
    def value(self) -> Any:
        """What it sets, without quotes; None: null, several values, or nothing that Hydra understands."""
        return None if self.parsed is None or self.is_swept else self.parsed.value()

    def with_value(self, value_text: str) -> str:
        """The text with another value."""
        return f"{self.prefix}{self.full_key}={value_text}"


@lru_cache(maxsize=_MOST_KEPT)
def parse(text: str) -> Override:
    """An override from its text, parsed once until `clear_parse_cache`: the grammar takes up to a millisecond."""
    prefix, full_key, value = split(text)
    key, at, package = full_key.partition("@")
    parsed, error = None, None
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
        key, package, at = parsed.key_or_group, parsed.package or "", "" if parsed.package is None else "@"
    except Exception as refusal:  # of many kinds, ANTLR's and Python's own among them
        error = refusal.with_traceback(None)
    return Override(text, prefix, key, package if at else None, value, parsed, error)


def clear_parse_cache() -> None:
    """Let go of what `parse` has kept: a process may make many runs, each with overrides of its own."""
    parse.cache_clear()


def key_of(text: str) -> str:
    """The key or group that an override sets: `training.epochs` of `+training.epochs=3`."""
    return parse(text).key


def find(texts: Iterable[str], *keys: str) -> Override | None:
    """The first override of one of these keys."""
    return next((override for override in map(parse, texts) if override.key in keys), None)


def find_last(texts: Sequence[str], *keys: str) -> Override | None:
    """The override that holds for one of these keys: the last."""
    return find(reversed(texts), *keys)


def first_invalid(texts: Iterable[str]) -> Override | None:
    """The first that Hydra's grammar doesn't take."""
    return next((override for override in map(parse, texts) if override.parsed is None), None)


def as_hydra(texts: Iterable[str], config_loader: ConfigLoader | None = None) -> list[HydraOverride]:
    """Hydra's own objects, which know how to list the values of a sweep.

    Args:
        texts: each of which Hydra's grammar takes, see `first_invalid`.
        config_loader: knows the options of groups, which `group=glob(*)` asks for.
    """
    found = [override.parsed for override in map(parse, texts)]
    return [replace(parsed, config_loader=config_loader) for parsed in found if parsed is not None]
