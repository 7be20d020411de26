"""Packages that only some options need: where one is missing, the extra that brings it is named."""

import importlib.util
from types import ModuleType

from laptime.errors import UserError


def is_installed(package: str) -> bool:
    """Whether there is a package of that name, without importing it. A mere folder of that name is none: Python would
    import it as a namespace package, with nothing in it.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # it is loaded, and does not say from where
        return True
    return spec is not None and spec.origin is not None


def missing_package(error: Exception) -> str | None:
    """The missing package that caused an error; None: the error has another cause."""
    name = None
    if isinstance(error, ImportError):
        name = error.name
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    package = (name or "").partition(".")[0]
    return package if package and not is_installed(package) else None


def require(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are there, without importing them.

    Raises:
        UserError: one is not.
    """
    for package in packages:
        if not is_installed(package):
            raise UserError(f'needs {package}, which is not installed. Install it: pip install "laptime[{extra}]"')
