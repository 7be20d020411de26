"""Packages that only some options need: where one is missing, the extra that brings it is named."""

import importlib.util

from laptime.errors import UserError


def require(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are there, without importing them.

    Raises:
        UserError: one is not.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'needs {package}, which is not installed. Install it: pip install "laptime[{extra}]"')
