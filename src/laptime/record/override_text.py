"""Splits overrides without Hydra: saved ones, and text that Hydra's grammar doesn't accept.

laptime.config.overrides parses typed overrides.
"""

from typing import NamedTuple


class OverrideText(NamedTuple):
    """The parts of `++key=value`.

    Attributes:
        prefix: +, ++, ~ or empty.
        key: the key, with its package if it has one: `dataset@other`.
        value: the text after the first =; None: there is no =.
    """

    prefix: str
    key: str
    value: str | None


def split(text: str) -> OverrideText:
    head, equals, value = text.partition("=")
    key = head.lstrip("+~")
    return OverrideText(head.removesuffix(key), key, value if equals else None)
