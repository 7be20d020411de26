"""Optional packages: a folder of the same name doesn't count, and options that need a missing package are refused."""

import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest

from laptime import extras
from laptime.errors import UserError
from laptime.extras import EXTRAS, install_command, is_installed, require
from laptime.loggers.fail_safe import fail_safe


@pytest.fixture
def only_a_folder(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """only_a_folder(package): hides the installed package behind a folder of the same name without code."""
    find = PathFinder.find_spec

    def make(package: str) -> None:
        folder = work_folder / "here"
        (folder / package).mkdir(parents=True)

        def find_folder(cls: Any, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return find(name, [str(folder)] if name == package else path, target)

        monkeypatch.setattr(PathFinder, "find_spec", classmethod(find_folder))
        for name in list(sys.modules):
            if name == package or name.startswith(f"{package}."):
                monkeypatch.delitem(sys.modules, name)

    return make


@pytest.mark.unit
@pytest.mark.parametrize(
    ("package", "module", "arguments"),
    [
        ("wandb", "laptime.loggers.wandb", ["logger=wandb"]),
        ("alembic", "laptime.loggers.mlflow", ["logger=[csv,mlflow]"]),
        ("timm", "laptime.models.timm", ["model=timm"]),
    ],
)
def test_a_folder_is_not_taken_for_a_package(package, module, arguments, only_a_folder, call, work_folder, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    parent, _, name = module.rpartition(".")
    monkeypatch.delattr(f"{parent}.{name}", raising=False)
    only_a_folder(package)
    before = set(work_folder.rglob("*"))
    ended = call(*arguments)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"needs {package}" in ended.stderr and "pip install" in ended.stderr
    assert set(work_folder.rglob("*")) == before


@pytest.mark.unit
def test_a_folder_is_not_taken_for_an_exporter_or_an_energy_meter(only_a_folder):
    from laptime.exporting.targets import export_targets
    from laptime.machine.device import describe
    from laptime.machine.energy import NOT_INSTALLED, EnergyMeter

    only_a_folder("onnxscript")
    assert importlib.util.find_spec("onnxscript") is not None and not is_installed("onnxscript")
    (onnx,) = [target for target in export_targets(["all"], int8=False) if target.format == "onnx"]
    assert onnx.missing is not None
    only_a_folder("zeus")
    assert EnergyMeter(describe("cpu", "cpu")).missing == NOT_INSTALLED


@pytest.mark.unit
def test_installed_packages_and_modules_are_found():
    assert all(map(is_installed, ("torch", "laptime", "sys", "json")))
    assert not is_installed("no_such_package")


# Distributions whose name is not that of the imported package.
DISTRIBUTIONS = {"mlflow": "mlflow-skinny"}


@pytest.mark.unit
def test_each_extra_installs_its_packages():
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    declared = {
        extra: {re.split(r"[>\[]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
        if extra != "dev"
    }
    named: dict[str, set[str]] = {}
    for package, extra in EXTRAS.items():
        named.setdefault(extra, set()).add(DISTRIBUTIONS.get(package, package.replace("_", "-")))
    assert named == declared


@pytest.mark.unit
def test_only_the_module_extras_says_how_to_install_packages():
    source = Path(extras.__file__).parent
    assert [path.name for path in source.rglob("*.py") if "pip install" in path.read_text()] == ["extras.py"]


@pytest.mark.unit
def test_a_package_without_an_extra_is_installed_by_its_name():
    assert install_command("hydra_joblib_launcher") == 'pip install "laptime[joblib]"'
    assert install_command("no_such_package") == "pip install no_such_package"
    with pytest.raises(UserError, match=r"^needs no_such_package.*pip install no_such_package$"):
        require("torch", "no_such_package")


class Fails:
    """A logger that raises an error when it starts."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def experiment(self) -> None:
        raise self.error


@pytest.mark.unit
@pytest.mark.parametrize(
    "error",
    [ImportError("no such thing", name="json"), AttributeError("x", obj=shutil), ConnectionError("no answer")],
    ids=repr,
)
def test_a_logger_that_fails_with_another_error_is_left_out(error):
    assert fail_safe("mine", Fails(error)) is None  # type: ignore[arg-type]


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["import", "module", "attribute"])
def test_a_logger_without_its_package_is_refused(kind, only_a_folder):
    only_a_folder("onnxscript")
    error = {
        "import": ImportError("cannot import name", name="onnxscript"),
        "module": ModuleNotFoundError("no module", name="onnxscript.values"),
        "attribute": AttributeError("no attribute", obj=importlib.import_module("onnxscript")),
    }[kind]
    sys.modules.pop("onnxscript", None)
    with pytest.raises(UserError, match=r"^logger\.mine: needs onnxscript"):
        fail_safe("mine", Fails(error))  # type: ignore[arg-type]
