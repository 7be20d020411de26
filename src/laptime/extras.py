"""Packages that only some options need: where one is missing, the extra that brings it is named."""

import importlib.util
from types import ModuleType

from laptime.errors import UserError

# The extra that installs each package, by the name that it is imported by; Hydra's plugins by their folder.
EXTRAS = {
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "torchao": "int8",
    "zeus": "energy",
    "timm": "timm",
    "transformers": "transformers",
    "accelerate": "transformers",
    "mlflow": "mlflow",
    "alembic": "mlflow",
    "sqlalchemy": "mlflow",
    "wandb": "wandb",
    "hydra_optuna_sweeper": "search",
    "hydra_joblib_launcher": "joblib",
    "hydra_submitit_launcher": "submitit",
}


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


def install_command(package: str) -> str:
    """What to type where a package is missing: `pip install "laptime[timm]"`, or the package alone without an extra."""
    return f'pip install "laptime[{EXTRAS[package]}]"' if package in EXTRAS else f"pip install {package}"


def not_installed(package: str) -> str:
    """That a package is missing, and how to install it."""
    return f"needs {package}, which is not installed. Install it: {install_command(package)}"


def require(*packages: str) -> None:
    """Check that packages are installed, without importing them.

    Raises:
        UserError: one is not.
    """
    for package in packages:
        if not is_installed(package):
            raise UserError(not_installed(package))
