"""Attacks on --config-dir: it vouches for what its own files define, and for nothing else that they can reach."""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from laptime.config import security, vouching
from laptime.config.compose import add_user_modules
from laptime.config.targets import locate
from laptime.errors import UserError

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = {
    "my_lab.py": (
        "import os\nimport subprocess as sp\nfrom functools import partial\nfrom subprocess import run\n"
        "from torch.nn import Linear\nfrom my_package.nets import Net as Imported\n"
        "alias = run\nmade = partial(run, 'ls')\n\n\nclass Net:\n    def method(self):\n        pass\n\n\n"
        "def build():\n    return Net()\n\n\nif True:\n    class Conditional:\n        pass\nelse:\n"
        "    from os import system as Conditional\n"
    ),
    "my_package/__init__.py": "from .nets import Net\nfrom . import nets as renamed\nfrom os import *\n",
    "my_package/nets.py": "import os\n\n\nclass Net:\n    pass\n",
    "my_package/deep/layer.py": "class Layer:\n    pass\n",  # deep/ is a namespace package
    "shared/part.py": "class Part:\n    pass\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with modules, typed as --config-dir; what was imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ())
    path = tmp_path / "conf"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    before = set(sys.modules)
    add_user_modules(str(path))
    yield path
    vouching.vouch_for(None)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("my_lab", "my_package", "shared", "shadow"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "target",
    [
        "my_lab.Net", "my_lab.build", "my_lab.Imported", "my_package.Net", "my_package.nets.Net",
        "my_package.deep.layer.Layer", "shared.part.Part",
        "my_lab.Nett", "my_package.nets.Nett",  # the import says that there is no such name
    ],
)  # fmt: skip
def test_what_its_files_define_is_vouched_for(target, folder):
    vouching.check(target)
    assert not {"my_lab", "my_package", "shared"} & set(sys.modules)  # nothing was imported
    assert vouching.state().files[target].startswith(str(folder))


@pytest.mark.parametrize(
    ("target", "reason"),
    {
        "my_lab.os": "my_lab.os is a module that my_lab imports",
        "my_lab.sp": "is a module",
        "my_lab.os.system": "has no module os",
        "my_lab.sp.run": "has no module sp",
        "my_lab.run": "my_lab imports run from subprocess",
        "my_lab.Linear": "my_lab imports Linear from torch.nn",
        "my_lab.alias": "assigns alias",
        "my_lab.made": "assigns made",
        "my_lab.Conditional": "my_lab imports Conditional from os",
        "my_lab.Net.method": "has no module Net",
        "my_lab.Net.__init__.__globals__": "has no module",
        "my_lab.__builtins__.eval": "has no module",
        "my_package.nets.os": "is a module",
        "my_package.system": "imports * from os",
        "my_package.deep": "imports * from os",
        "shared.Part": "without __init__.py",
        "nowhere.Net": "has no module nowhere",
        "my_lab": "must be the full path of a class",
        "my_lab.": "must be the full path of a class",
        ".my_lab.Net": "not a valid module name",
        "my_lab..Net": "not a valid module name",
        "my_package/nets.Net": "not a valid module name",
        "my_package.my-nets.Net": "not a valid module name",
        "": "must be the full path of a class",
        "os.system": "a module of Python or Laptime",
        "builtins.eval": "a module of Python or Laptime",
        "hydra.utils.get_method": "has no module hydra",
        "my_package.laptime.sweeps.notify.notify": "a module of Python or Laptime",
        "hydra_plugins.mine.Net": "a module of Python or Laptime",
        "functools.partial": "a module of Python or Laptime",
        "torch.hub.load": "has no module torch",
        "laptime.cli.run": "a module of Python or Laptime",
    }.items(),
)
def test_what_its_files_merely_reach_is_not(target, reason, folder):
    with pytest.raises(vouching.NotVouched, match=reason.replace("*", r"\*")):
        vouching.check(target)
    assert "my_lab" not in sys.modules and target not in vouching.state().files


@pytest.mark.parametrize("name", ["json.py", "this.py", "torch/__init__.py", "numpy.py", "laptime/__init__.py"])
def test_a_file_that_has_the_name_of_an_installed_module_is_not(name, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("class Net:\n    pass\n")
    with pytest.raises(vouching.NotVouched):
        vouching.check(f"{name.partition('.')[0].partition('/')[0]}.Net")


def test_a_folder_that_python_searches_first_wins(folder, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    (first / "my_lab.py").write_text("class Net:\n    pass\n")
    sys.path.insert(0, str(first))
    with pytest.raises(vouching.NotVouched, match=f"Python imports my_lab from {first}"):
        vouching.check("my_lab.Net")


def test_a_module_that_is_loaded_from_elsewhere_wins(folder, tmp_path, monkeypatch):
    first = tmp_path / "first"
    first.mkdir()
    (first / "my_lab.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(str(first))
    __import__("my_lab")
    sys.path.remove(str(first))
    with pytest.raises(vouching.NotVouched, match="Python imports my_lab from"):
        vouching.check("my_lab.Net")


@pytest.mark.parametrize("link", ["linked.py", "linked", "my_package/linked.py", "linked_package"])
def test_a_link_that_leads_out_of_the_folder_is_refused(link, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "net.py").write_text("class Net:\n    pass\n")
    (outside / "__init__.py").write_text("")
    is_file = link.endswith(".py")
    (folder / link).symlink_to(outside / "net.py" if is_file else outside, target_is_directory=not is_file)
    module = link.removesuffix(".py").replace("/", ".") + ("" if is_file else ".net")
    with pytest.raises(vouching.NotVouched, match="is outside of"):
        vouching.check(f"{module}.Net")


def test_a_package_whose_init_leads_out_is_refused(folder, tmp_path):
    (tmp_path / "init.py").write_text("")
    (folder / "shared/__init__.py").symlink_to(tmp_path / "init.py")
    with pytest.raises(vouching.NotVouched, match="is outside of"):
        vouching.check("shared.part.Part")


def test_links_within_the_folder_and_a_link_to_the_folder_are_fine(folder, tmp_path, monkeypatch):
    (folder / "linked.py").symlink_to(folder / "my_package/nets.py")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for config_dir in ("link", "conf", "./link/../conf"):
        vouching.vouch_for(config_dir)
        vouching.check("linked.Net")
        vouching.check("my_lab.Net")


@pytest.mark.parametrize("name", ["shadow.pyc", "shadow.so", "shadow.zip"])
def test_only_source_files_are_vouched_for(name, folder, tmp_path):
    (tmp_path / "shadow.py").write_text("class Net:\n    pass\n")
    if name == "shadow.pyc":
        py_compile.compile(str(tmp_path / "shadow.py"), cfile=str(folder / name))
    else:
        (folder / name).write_bytes(b"\x7fELF")
    with pytest.raises(vouching.NotVouched):
        vouching.check("shadow.Net")


def test_compiled_code_that_a_link_brings_in_is_refused(folder, tmp_path):
    (folder / "__pycache__").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(vouching.NotVouched, match="is outside of"):
        vouching.check("my_lab.Net")


def test_a_pth_file_adds_no_folder(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/shadow.py").write_text("class Net:\n    pass\n")
    (folder / "more.pth").write_text(f"{tmp_path / 'elsewhere'}\nimport os; os.environ['PTH_RAN'] = '1'\n")
    add_user_modules(str(folder))
    with pytest.raises(vouching.NotVouched, match="has no module shadow"):
        vouching.check("shadow.Net")
    assert "PTH_RAN" not in os.environ


def refuse(target: str, folder: Path, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Require that a folder, where Python searches first, does not vouch for a target."""
    monkeypatch.syspath_prepend(str(folder))
    vouching.vouch_for(folder)
    with pytest.raises(vouching.NotVouched, match=reason):
        vouching.check(target)


@pytest.mark.parametrize(
    ("subfolder", "target"),
    {
        "": "src.laptime.sweeps.notify.notify",
        "src": "laptime.sweeps.notify.notify",
        "src/laptime": "sweeps.notify.notify",
        "src/laptime/sweeps": "notify.notify",
        "src/hydra_plugins": "laptime.sweepers.Any",
        "..": f"{CHECKOUT.name}.src.laptime.sweeps.notify.notify",
        "benchmarks": f"{next((CHECKOUT / 'benchmarks').glob('*.py')).stem}.main",
        ".": "tests.support.settings.QUICK",
    }.items(),
)
def test_no_folder_vouches_for_laptimes_own_code(subfolder, target, folder, monkeypatch):
    refuse(target, CHECKOUT / subfolder, "belongs to Laptime|a module of Python or Laptime", monkeypatch)


@pytest.mark.parametrize(
    "target", ["renamed.sweeps.notify.notify", "old.code.renamed.sweeps.notify.notify", "linked.sweeps.notify.notify"]
)
def test_a_copy_of_laptime_with_another_name_is_refused(target, folder, tmp_path, monkeypatch):
    is_link = target.startswith("linked")
    package = folder / "hidden/copy" if is_link else folder.joinpath(*target.split(".")[:-3])
    for name in ("__init__.py", "errors.py", "version.py", "record/schema.py", "sweeps/notify.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("def notify():\n    pass\n")
    if is_link:
        (folder / "linked").symlink_to(package, target_is_directory=True)
    refuse(target, folder, "belongs to Laptime", monkeypatch)


def test_a_module_of_the_users_own_in_the_checkout_is_fine(folder, tmp_path, monkeypatch):
    checkout = tmp_path / "laptime"  # as git clone names it
    for name in ("errors.py", "version.py", "record/schema.py"):
        (checkout / "src/laptime" / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / "src/laptime" / name).write_text("")
    (checkout / "my_conf").mkdir()
    (checkout / "my_conf/shadow.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(str(checkout / "my_conf"))
    vouching.vouch_for(checkout / "my_conf")
    vouching.check("shadow.Net")


@pytest.mark.parametrize(
    "place",
    [
        "venv/lib/python3.12/site-packages", "python/lib/python3.9", "usr/lib/python3/dist-packages", "site-packages",
        "Lib64/python3.13t",
    ],
)  # fmt: skip
@pytest.mark.parametrize("config_dir", [".", "place"])
def test_packages_of_any_python_below_above_or_in_the_folder_do_not_count(
    place, config_dir, folder, tmp_path, monkeypatch
):
    path = tmp_path / place
    path.mkdir(parents=True)
    (path / "shadow.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(str(path))
    reason = "installed package" if config_dir == "place" else "has no module"
    refuse("shadow.Net", path if config_dir == "place" else tmp_path, reason, monkeypatch)


def test_packages_that_are_installed_below_the_folder_do_not_count(monkeypatch):
    import torch

    packages = Path(torch.__file__).parents[1]
    for config_dir in (Path("/"), packages.parents[2], packages, packages / "torch"):
        vouching.vouch_for(config_dir)
        for target in ("torch.hub.load", "hub.load", "encodings.search_function", "usr.share.gcc.python.Any"):
            with pytest.raises(vouching.NotVouched):
                vouching.check(target)
    monkeypatch.syspath_prepend(str(packages / "torch"))
    refuse("hub.load", packages / "torch", "belongs to an installed package", monkeypatch)
    vouching.vouch_for(None)


def test_without_a_typed_folder_nothing_is_vouched_for(folder):
    vouching.vouch_for(None)
    with pytest.raises(vouching.NotVouched, match="no --config-dir"):
        vouching.check("my_lab.Net")
    with pytest.raises(UserError, match=r"security\.allowed_targets=\[my_lab\].*--config-dir"):
        security.check_targets({"model": {"_target_": "my_lab.Net"}}, [])


@pytest.mark.parametrize("where", ["typed", "environment"])
def test_the_allow_list_does_not_need_the_folder(where, folder, monkeypatch):
    vouching.vouch_for(None)
    if where == "environment":
        monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ("my_lab.os",))
    overrides = ["security.allowed_targets=[my_lab.os]"] if where == "typed" else []
    security.check_targets({"model": {"_target_": "my_lab.os.system"}}, overrides)


def test_every_nested_target_is_checked(folder):
    config = {"model": {"_target_": "my_lab.Net", "inner": [{"_recursive_": False, "a": {"_target_": "my_lab.run"}}]}}
    with pytest.raises(UserError, match=r"model\.inner\[0\]\.a\._target_=my_lab\.run: "):
        security.check_targets(config, [])


@pytest.mark.parametrize(
    ("code", "words"),
    {
        "import sys, types\nsys.modules['my_lab'] = types.ModuleType('my_lab')\n"
        "sys.modules['my_lab'].Net = eval": "must be what the file",
        "class Net:\n    __module__ = 'os'\n": "outside of|not a .py file",
        "class Net:\n    pass\nglobals()['Net'] = __import__('subprocess').run\n": "outside of",
        "class Net:\n    pass\nglobals()['Net'] = __import__('functools').partial(print)\n": "must be what the file",
    }.items(),
)
def test_what_was_imported_is_compared_with_the_file(code, words, folder):
    (folder / "my_lab.py").write_text(code)
    vouching.check("my_lab.Net")
    with pytest.raises(UserError, match=words):
        locate("model", {"_target_": "my_lab.Net"})


def test_a_file_that_appears_elsewhere_after_the_check_is_not_used(folder, tmp_path):
    vouching.check("my_lab.Net")
    first = tmp_path / "first"
    first.mkdir()
    (first / "my_lab.py").write_text("class Net:\n    pass\n")
    sys.path.insert(0, str(first))
    with pytest.raises(UserError, match="is outside of"):
        locate("model", {"_target_": "my_lab.Net"})


def test_other_processes_get_the_folder_and_what_was_checked(folder):
    vouching.check("my_lab.Net")
    before = vouching.state()
    vouching.vouch_for(None)
    vouching.restore(before)
    vouching.check("my_lab.build")
    assert set(vouching.state().files) == {"my_lab.Net", "my_lab.build"} and set(before.files) == {"my_lab.Net"}
