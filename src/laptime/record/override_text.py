"""An override taken apart without Hydra: for saved ones, and for texts that Hydra's grammar doesn't take.

What is typed is parsed by laptime.config.overrides.
"""

from typing import NamedTuple


class OverrideText(NamedTuple):
    """The parts of `++key=value`.

    Attributes:
        prefix: +, ++, ~ or nothing.
        key: with its package, if it has one: `dataset@other`.
        value: what follows the first =, as it stands there; None: there is no =.
    """

    prefix: str
    key: str
    value: str | None


def split(text: str) -> OverrideText:
    head, equals, value = text.partition("=")
    key = head.lstrip("+~")
    return OverrideText(head.removesuffix(key), key, value if equals else None)
