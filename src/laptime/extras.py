"""Optional packages, and the extras of Laptime that install them."""

import importlib.util
from types import ModuleType

from laptime.errors import UserError

# The extra that installs each package. Keys are import names, or for Hydra's plugins the names of their folders.
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
    """Whether a package is installed, without importing it.

    A folder of that name doesn't count, though Python would import it as an empty namespace package.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # it is loaded, but has no __spec__
        return True
    return spec is not None and spec.origin is not None


def missing_package(error: Exception) -> str | None:
    """Return the missing package that caused an error; None: the error has another cause."""
    name = None
    if isinstance(error, ImportError):
        name = error.name
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    package = (name or "").partition(".")[0]
    return package if package and not is_installed(package) else None


def install_command(package: str) -> str:
    """Return the command that installs a package: `pip install "laptime[timm]"`, or the package if no extra has it."""
    return f'pip install "laptime[{EXTRAS[package]}]"' if package in EXTRAS else f"pip install {package}"


def not_installed(package: str) -> str:
    """Return the message that a package is missing and how to install it."""
    return f"needs {package}, which is not installed. Install it: {install_command(package)}"


def require(*packages: str) -> None:
    """Check that packages are installed, without importing them.

    Raises:
        UserError: a package is missing.
    """
    for package in packages:
        if not is_installed(package):
            raise UserError(not_installed(package))
