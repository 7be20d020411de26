"""Counts the samples and tokens of a batch, with the user's functions or from its tensors."""

from collections.abc import Callable, Mapping
from typing import Any

from laptime.hooks.guard import Guard
from laptime.hooks.settings import Settings
from laptime.lap.count import NumTokens, are_next_tokens, as_count, num_samples, num_samples_of_loaders, num_tokens


class BatchCounter:
    """Counts samples and tokens.

    Args:
        settings: the timer's arguments, whose `samples` and `tokens` take precedence.
        guard: catches errors of these functions; one that failed is not called again.
        has_several_loaders: whether a batch combines batches of several DataLoaders, whose samples are added up.
    """

    def __init__(self, settings: Settings, guard: Guard, has_several_loaders: bool = False) -> None:
        self.settings = settings
        self.guard = guard
        self._count_samples = num_samples_of_loaders if has_several_loaders else num_samples
        self._is_text: bool | None = None if not has_several_loaders else False

    def samples(self, batch: Any) -> int | None:
        """Return the number of samples; None: unknown."""
        if self.settings.samples is None:
            return self._count_samples(batch)
        count = self._call("samples", self.settings.samples, batch)
        return None if count is None else int(count)

    def tokens(self, batch: Any) -> NumTokens:
        """Return the number of tokens; None: unknown, or the batch was not recognized as text."""
        if self.settings.tokens is not None:
            return self._call("tokens", self.settings.tokens, batch)
        if self._is_text is None:  # decided on the first batch
            self._is_text = isinstance(batch, Mapping) or (num_tokens(batch) is not None and are_next_tokens(batch))
        return num_tokens(batch) if self._is_text else None

    def _call(self, key: str, function: Callable[[Any], Any], batch: Any) -> NumTokens:
        return self.guard.attempt(key, lambda: as_count(function(batch)))
