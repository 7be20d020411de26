"""A resolver that gives another value each time it is asked."""

import itertools

from omegaconf import OmegaConf

_COUNT = itertools.count(1)


def register() -> None:
    OmegaConf.register_new_resolver("changing_resolver", lambda: next(_COUNT), replace=True)
