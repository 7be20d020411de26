"""Networks with a secret argument."""

import math
from collections.abc import Sequence

from torch import nn


class WithToken(nn.Sequential):
    """A linear classifier that ignores its token."""

    def __init__(self, token: str, input_shape: Sequence[int] = (1, 8, 8), num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


class Refusing(nn.Linear):
    """Raises an error that contains its key."""

    def __init__(self, api_key: str) -> None:
        raise RuntimeError("refused " + api_key)
