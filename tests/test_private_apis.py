"""Private names of other packages: the list is complete, and the installed packages still have them."""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.private_apis import PRIVATE_NAMES, PrivateName

_OURS = ("laptime", "hydra_plugins.laptime")
_GETTERS = ("getattr", "setattr", "hasattr", "delattr")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _defined(tree: ast.AST) -> set[str]:
    """Names that Laptime's own code defines or assigns."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.arg():
                names.add(node.arg)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                names.add(node.attr)
    return names


def _used(tree: ast.AST) -> set[str]:
    """Private names that are imported from other packages, or read from any object."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if not module.startswith(_OURS):
                names |= {*module.split("."), *(alias.name for alias in node.names)}
            case ast.Import():
                names |= {part for alias in node.names for part in alias.name.split(".")}
            case ast.Attribute():
                names.add(node.attr)
            case ast.Call(func=ast.Name(id=function), args=[_, ast.Constant(value=str(name)), *_]):
                names |= {name} if function in _GETTERS else set()
    return {name for name in names if _is_private(name)}


@pytest.mark.unit
def test_the_list_has_exactly_the_private_names_that_the_source_uses():
    trees = [ast.parse(path.read_text()) for path in Path(ROOT, "src").rglob("*.py")]
    defined = set().union(*map(_defined, trees))
    used = set().union(*map(_used, trees)) - defined
    assert used == {private.name for private in PRIVATE_NAMES} - defined


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: f"{private.module}.{private.name}")
def test_the_installed_package_still_has_the_private_name(private: PrivateName):
    package = private.module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    module = importlib.import_module(private.module)
    if hasattr(module, private.name):
        return
    try:
        importlib.import_module(f"{private.module}.{private.name}")
    except ModuleNotFoundError:
        # An attribute of instances.
        has_name = re.search(rf"\b{private.name}\b", inspect.getsource(module)) is not None
        assert has_name, f"{private.module} no longer has {private.name}: {private.reason}"
