"""A resolver that returns another value each time."""

import itertools

from omegaconf import OmegaConf

_COUNT = itertools.count(1)


def register() -> None:
    OmegaConf.register_new_resolver("changing_resolver", lambda: next(_COUNT), replace=True)
