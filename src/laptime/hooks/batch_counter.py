"""Counts what somebody else's batches hold, by the user's functions or by what can be seen."""

from collections.abc import Callable, Mapping
from typing import Any

from laptime.hooks.guard import Guard
from laptime.hooks.settings import Settings
from laptime.lap.count import NumTokens, are_next_tokens, as_count, num_samples, num_samples_of_loaders, num_tokens


class BatchCounter:
    """Counts samples and tokens.

    Args:
        settings: may have functions of the user's.
        guard: a function that fails is left out.
        has_parts: whether a batch holds one of each of several DataLoaders, whose samples are then added up.
    """

    def __init__(self, settings: Settings, guard: Guard, has_parts: bool = False) -> None:
        self.settings = settings
        self.guard = guard
        self._find_samples = num_samples_of_loaders if has_parts else num_samples
        self._is_text: bool | None = None if not has_parts else False

    def samples(self, batch: Any) -> int | None:
        """None: they can't be told."""
        if self.settings.samples is None:
            return self._find_samples(batch)
        count = self._own("samples", self.settings.samples, batch)
        return None if count is None else int(count)

    def tokens(self, batch: Any) -> NumTokens:
        """None: it is not known to be text, or they can't be told."""
        if self.settings.tokens is not None:
            return self._own("tokens", self.settings.tokens, batch)
        if self._is_text is None:  # the first batch tells
            self._is_text = isinstance(batch, Mapping) or (num_tokens(batch) is not None and are_next_tokens(batch))
        return num_tokens(batch) if self._is_text else None

    def _own(self, what: str, count: Callable[[Any], Any], batch: Any) -> NumTokens:
        return self.guard.attempt(what, lambda: as_count(count(batch)))
