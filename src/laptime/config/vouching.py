"""Which classes the folder of --config-dir vouches for: those that its own Python files define. Imports none of them.

A folder that was typed on this command line is trusted, and so are its files. The names in a configuration are not: the
file may come from elsewhere (`hydra.searchpath`, a resumed sweep). So a name is vouched for only if

- Python imports the module from a .py file whose real path is in the folder; so does every package around it;
- the file belongs neither to Laptime nor to an installed package or Python itself, wherever the folder is;
- that file defines the name with `class` or `def`, or imports it from such a file. A name that the module imports from
  elsewhere (`my_lab.os`) or assigns is not vouched for.

After the import, `verify` compares what was imported with these files.
"""

import ast
import importlib
import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from laptime.errors import UserError

# Names that no part of a vouched module may have: Laptime's own functions run shell commands and write files.
_LAPTIME = ("laptime", "hydra_plugins")
# A folder with these files is a copy of Laptime's package, whatever its name.
_LAPTIME_FILES = ("errors.py", "version.py", "record/schema.py")
# Folders of a checkout of Laptime with code that is not the user's.
_CHECKOUT_FOLDERS = ("src", "tests", "benchmarks", "docs")
# Folders of installed packages and of the standard library, also those of another Python.
_LIBRARY = re.compile(r"/(site-packages|dist-packages|lib(64|32)?/(python|pypy)\d[\d.]*t?)(/|$)", re.IGNORECASE)
# Folders of the operating system.
_SYSTEM_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/share", "/lib", "/lib64", "/etc")


class State(NamedTuple):
    """What other processes of this command get.

    Attributes:
        folder: its real path; None: no folder was typed.
        files: the file of each target that was vouched for.
    """

    folder: Path | None = None
    files: dict[str, str] = {}


_state = State()


class NotVouched(Exception):
    """The folder does not vouch for a target. The text is the reason, without a full stop."""


def vouch_for(folder: str | Path | None) -> None:
    """Set the folder that was typed as --config-dir on this command line; None: none was."""
    restore(State(None if folder is None else Path(folder).resolve()))


def state() -> State:
    """What `restore` takes in another process."""
    return _state


def restore(state: State) -> None:
    global _state
    _state = state


def check(target: str) -> None:
    """Require that the folder vouches for a class or function: `my_lab.nets.TinyNet`.

    Raises:
        NotVouched: it does not.
    """
    module, _, name = target.rpartition(".")
    if _state.folder is None:
        raise NotVouched("no --config-dir was typed")
    if not module or not name.isidentifier():
        raise NotVouched("it must be the full path of a class or function, like my_lab.nets.TinyNet")
    file = _file(module, _state.folder)
    _require_definition(module, name, file, _state.folder, ())
    restore(State(_state.folder, {**_state.files, target: str(file)}))


def verify(target: str, imported: Any) -> None:
    """Require that a vouched target was imported from the file that was checked. Other targets pass.

    Raises:
        UserError: Python imported something else.
    """
    if target not in _state.files or _state.folder is None:
        return
    module = target.rpartition(".")[0]
    for name in (module, getattr(imported, "__module__", None)):
        spec = getattr(sys.modules.get(str(name)), "__spec__", None)
        try:
            path = _require_inside(str(name), spec, _state.folder)
        except NotVouched as error:
            raise UserError(f"{target}: must be what the file in --config-dir defines, but {error}.") from error
        if name == module and str(path) != _state.files[target]:
            raise UserError(f"{target}: was imported from {path}, not from {_state.files[target]}.")


def _file(module: str, folder: Path) -> Path:
    """The real path of a module's file in the folder.

    Raises:
        NotVouched: Python would import another one, or the file is outside of the folder.
    """
    root, *names = module.split(".")
    if not all(name.isidentifier() for name in (root, *names)):
        raise NotVouched(f"{module} is not a valid module name")
    if root in sys.stdlib_module_names or any(name in _LAPTIME for name in (root, *names)):
        raise NotVouched(f"{module} is a module of Python or Laptime")
    importlib.invalidate_caches()
    in_folder = PathFinder.find_spec(root, [str(folder)])
    if in_folder is None:
        raise NotVouched(f"the folder has no module {root}")
    try:
        spec = importlib.util.find_spec(root)  # what Python imports: it looks in other folders first
    except (ImportError, ValueError):
        spec = None
    if spec is None or (spec.origin != in_folder.origin and _real(spec.origin) != _real(in_folder.origin)):
        raise NotVouched(f"Python imports {root} from {_origin(spec)}")
    path = _require_inside(root, spec, folder)
    for number, name in enumerate(names, start=2):
        full_name = ".".join(module.split(".")[:number])
        locations = spec.submodule_search_locations
        loaded = getattr(sys.modules.get(full_name), "__spec__", None)
        spec = loaded or (PathFinder.find_spec(name, list(locations)) if locations is not None else None)
        if spec is None:
            raise NotVouched(f"{module.rpartition('.')[0]} has no module {name}")
        path = _require_inside(full_name, spec, folder)
    if path is None:
        raise NotVouched(f"{module} is a folder without __init__.py")
    return path


def _require_inside(name: str, spec: ModuleSpec | None, folder: Path) -> Path | None:
    """The real path of a module's source file; None: a namespace package, which has none.

    Raises:
        NotVouched: it is not a .py file in the folder.
    """
    if spec is not None and spec.origin is None and spec.submodule_search_locations is not None:
        return None
    if spec is None or spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
        raise NotVouched(f"{name} comes from {_origin(spec)}, which is not a .py file")
    paths = [Path(spec.origin)]
    if spec.cached is not None and sys.pycache_prefix is None:
        paths.append(Path(spec.cached))  # Python runs it instead, if it is not older
    for path in paths:
        if not path.resolve().is_relative_to(folder):
            raise NotVouched(f"{path.resolve()} is outside of the folder")
        if (owner := _foreign_owner(path.resolve())) is not None:
            raise NotVouched(f"{path.resolve()} belongs to {owner}")
    return paths[0].resolve()


def _foreign_owner(path: Path) -> str | None:
    """Whose file it is; None: the user's. A typed folder may hold such files, but does not vouch for them.

    Args:
        path: a real path.
    """
    if _LIBRARY.search(path.as_posix()) or any(path.is_relative_to(folder) for folder in _library_folders()):
        return "an installed package"
    for parent in path.parents:
        is_package = parent.name == "laptime" and (parent / "__init__.py").is_file()
        in_checkout = path.relative_to(parent).parts[0] in _CHECKOUT_FOLDERS and _is_laptime(parent / "src/laptime")
        if parent.name == "hydra_plugins" or is_package or in_checkout or _is_laptime(parent):
            return "Laptime"
    return None


def _is_laptime(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _LAPTIME_FILES)


def _library_folders() -> set[Path]:
    """The folders of installed packages, of the standard library and of the operating system."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages(), *_SYSTEM_FOLDERS]
    return {Path(folder).resolve() for folder in folders}


def _real(origin: str | None) -> Path | None:
    return None if origin is None else Path(origin).resolve()


def _origin(spec: ModuleSpec | None) -> str:
    return "elsewhere" if spec is None or spec.origin is None else spec.origin


def _require_definition(module: str, name: str, file: Path, folder: Path, visited: tuple[str, ...]) -> None:
    """Require that every statement of a module that binds a name defines it, or imports it from the folder.

    A name without such a statement, and a file that Python can't read, pass: the import says what is wrong.

    Raises:
        NotVouched: it is imported from elsewhere, or assigned.
    """
    if module in visited:
        return
    try:
        statements = list(_statements(ast.parse(file.read_bytes()).body))
    except (SyntaxError, ValueError, OSError):
        return
    is_bound, starred = False, []
    for statement in statements:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            is_bound = is_bound or statement.name == name
        elif isinstance(statement, ast.ImportFrom):
            source = _absolute(statement, module, file)
            starred += [source for alias in statement.names if alias.name == "*"]
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    _require_import(module, alias.name, name, source, folder, visited)
                    is_bound = True
        elif isinstance(statement, ast.Import):
            if any((alias.asname or alias.name.partition(".")[0]) == name for alias in statement.names):
                raise NotVouched(f"{module}.{name} is a module that {module} imports")
        elif name in _assigned(statement):
            raise NotVouched(f"{module} assigns {name}, and does not define it with class or def")
    for source in starred if not is_bound else ():
        _require_import(module, name, "*", source, folder, visited)


def _require_import(module: str, original: str, name: str, source: str, folder: Path, visited: tuple[str, ...]) -> None:
    """Require that `from source import original` brings a definition of the folder.

    Raises:
        NotVouched: it does not.
    """
    try:
        file = _file(source, folder)
    except NotVouched as error:
        raise NotVouched(f"{module} imports {name} from {source}") from error
    _require_definition(source, original, file, folder, (*visited, module))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those in if, try, with, for and while included."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for inner in getattr(statement, part, []):
                    yield from _statements(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])
        for case in getattr(statement, "cases", []):
            yield from _statements(case.body)


def _assigned(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns, those in its expressions and targets included."""
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _absolute(statement: ast.ImportFrom, module: str, file: Path) -> str:
    """The full name of the module that `from ... import` names."""
    if not statement.level:
        return statement.module or ""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(statement.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{statement.module}" if statement.module else package
