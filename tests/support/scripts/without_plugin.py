"""`without_plugin.py PACKAGE ARGUMENTS` is train.py as if a Hydra plugin were not installed."""

import pkgutil
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

package = sys.argv.pop(1)
for name in ("", ".config", f".{package.removeprefix('hydra_')}", "._impl"):
    sys.modules[f"hydra_plugins.{package}{name}"] = None  # type: ignore[assignment]
walk = pkgutil.walk_packages


def walk_without_it(*arguments: Any, **keywords: Any) -> Iterator[pkgutil.ModuleInfo]:
    return (module for module in walk(*arguments, **keywords) if package not in module.name)


pkgutil.walk_packages = walk_without_it  # type: ignore[assignment]
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
