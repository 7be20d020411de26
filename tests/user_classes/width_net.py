"""A network with one hidden layer."""

import math
from collections.abc import Sequence

from torch import nn


class WidthNet(nn.Sequential):
    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int) -> None:
        first = nn.Linear(math.prod(input_shape), width)
        super().__init__(nn.Flatten(), first, nn.Linear(width, num_classes))
