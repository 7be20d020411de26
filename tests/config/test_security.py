"""What a configuration may name (`_target_`): an allow-list that files can't widen. Runs the real command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.support.configs import changed
from tests.support.settings import NO_REPORT, QUICK

from laptime.cli import main
from laptime.config import security
from laptime.errors import UserError
from laptime.runner import fresh_processes

# Digits, which the network of the tests' own module is made for.
TINY_NET = [*QUICK, "dataset.limit=500", "training.epochs=1"]


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ())
    monkeypatch.setattr(fresh_processes, "preload", lambda: None)  # no run here has several ranks


@pytest.fixture
def tell_tale(work_folder: Path) -> Path:
    """A module that leaves a file behind when it is imported, and a network in it; the file."""
    (work_folder / "tell_tale.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath(__file__).with_name('imported').touch()\n\n\n"
        "class Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    yield work_folder / "imported"
    sys.modules.pop("tell_tale", None)


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


NET = ["model._target_=tell_tale.Net", "~model.hidden_sizes", "~model.dropout"]


@pytest.mark.parametrize(
    "overrides",
    [
        NET,
        ["+callbacks.mine={_target_:tell_tale.Net}"],
        ["+logger.mine={_target_:tell_tale.Net}"],
        ["optimizer._target_=tell_tale.Net"],
        ["scheduler._target_=tell_tale.Net"],
        ["profiler._target_=tell_tale.Net"],
        ["dataset._target_=tell_tale.Net"],
        ["+model.inner={_target_:tell_tale.Net}"],
        ["+model.inner=[{deep:[{_target_:tell_tale.Net}]}]"],
        ["-m", *NET, "seed=1,2"],
        ["-m", "model._target_=laptime.models.mlp.MLP,tell_tale.Net"],
    ],
)
def test_a_target_that_is_not_allowed_is_refused_before_it_is_imported(overrides, tell_tale, work_folder, capfd):
    assert ended([*overrides, *TINY_NET]) == 2
    errors = capfd.readouterr().err
    assert "_target_=tell_tale.Net" in errors and "security.allowed_targets=[tell_tale]" in errors
    assert len(errors.splitlines()) <= 2
    assert not tell_tale.exists()
    assert [path.name for path in work_folder.iterdir()] == ["tell_tale.py"]


def test_an_allowed_target_trains(tell_tale):
    assert ended([*NET, *TINY_NET, "security.allowed_targets=[tell_tale.Net]"]) == 0
    assert tell_tale.exists()


@pytest.mark.parametrize("how", ["module", "class", "environment"])
def test_an_allowed_target_is_accepted(how, tell_tale, monkeypatch, capfd):
    """As far as a dry run goes, which imports nothing of it."""
    added = {"module": ["security.allowed_targets=[tell_tale]"], "class": ["security.allowed_targets=[tell_tale.Net]"]}
    if how == "environment":
        monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ("os", "tell_tale"))
    assert ended(["-m", *NET, *TINY_NET, *added.get(how, []), "sweep.dry_run=true"]) == 0, capfd.readouterr().err


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.load", "torch.nn.init.torch.load", "torch.nn.modules.module.torch.hub.load",
        "torch.optim.lr_scheduler.warnings.sys.modules", "os.system", "builtins.eval", "subprocess.Popen",
        "laptime.data.files.shutil.rmtree", "laptime.models.mlp.nn.Linear", "pytorch_lightning.Trainer",
        "torch.nnX.Linear", "torch", "", "torch.nn.", ".torch.nn", "torch..nn.Linear",
        "torchvision.models.resnet.load_state_dict_from_url", "hydra.utils.instantiate",
    ],
)  # fmt: skip
def test_places_are_exact(target, work_folder, capfd):
    assert ended([f"model._target_='{target}'", *TINY_NET]) == 2
    errors = capfd.readouterr().err
    assert f"model._target_={target}: " in errors and len(errors.splitlines()) <= 2
    assert list(work_folder.iterdir()) == []


@pytest.mark.unit
def test_the_classes_that_conf_names_are_allowed(work_folder):
    """Those of Laptime's own folder conf/, and not of a folder of that name elsewhere; no other module of Laptime."""
    (work_folder / "conf" / "model").mkdir(parents=True)
    (work_folder / "conf" / "model" / "evil.yaml").write_text("_target_: laptime.sweeps.notify.notify\n")
    security.shipped_modules.cache_clear()
    rooms = {"models", "data", "optimizers", "schedulers", "callbacks", "loggers"}
    assert {module.split(".")[1] for module in security.shipped_modules()} == rooms
    security.check_targets({"model": {"_target_": "laptime.models.mlp.MLP"}}, [])
    for name in ("data.files.download", "sweeps.notify.notify", "sweeps.forget_jobs.ForgetJobs", "models.parts.head"):
        with pytest.raises(UserError, match="allow-list"):
            security.check_targets({"model": {"_target_": f"laptime.{name}"}}, [])


@pytest.mark.parametrize("where", ["experiment", "group", "sweep", "interpolation"])
def test_a_file_cannot_widen_the_list(where, tell_tale, work_folder, capfd):
    files = {
        "experiment/evil.yaml": "# @package _global_\nsecurity:\n  allowed_targets: [tell_tale]\n",
        "security/evil.yaml": "allowed_targets: [tell_tale]\n",
        "model/evil.yaml": "_target_: tell_tale.Net\nplaces: tell_tale\n",
    }
    files["experiment/sweeps.yaml"] = (
        "# @package _global_\ndefaults:\n  - override /model: evil\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      security.allowed_targets: '[tell_tale]'\n      seed: 1,2\n"
    )
    for name, content in files.items():
        path = work_folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    overrides = {
        "experiment": ["experiment=evil"],
        "group": ["security=evil"],
        "sweep": ["experiment=sweeps"],
        "interpolation": ["security.allowed_targets=['${model.places}']"],
    }[where]
    assert ended(["--config-dir", "conf", "model=evil", *overrides, *TINY_NET]) == 2
    errors = capfd.readouterr().err
    assert "security.allowed_targets=" in errors and len(errors.splitlines()) <= 2
    assert not tell_tale.exists()


@pytest.mark.parametrize("value", ["tell_tale", "null", "[1]", "{a:b}", "[tell_tale],[os]", "[[tell_tale]]"])
def test_allowed_targets_that_are_no_list_of_modules_are_refused(value, work_folder, capfd):
    assert ended([f"security.allowed_targets={value}", *TINY_NET]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: security.allowed_targets=") and len(errors.splitlines()) <= 2
    assert list(work_folder.iterdir()) == []


@pytest.mark.soak
def test_a_resumed_sweep_is_told_again_what_it_may_trust(tell_tale, work_folder, capfd):
    trusted = "security.allowed_targets=[tell_tale]"
    assert ended(["-m", *NET, *TINY_NET, NO_REPORT, trusted, "seed=1,2", "hydra.sweep.dir=s"]) == 0
    record = work_folder / "s" / "1" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "failed"}))
    capfd.readouterr()
    assert ended(["sweep.resume=s"]) == 2
    assert "error: security.allowed_targets=['tell_tale']: can only be set" in capfd.readouterr().err
    assert ended(["sweep.resume=s", trusted]) == 0
    errors = capfd.readouterr().err
    assert "run 0 (seed=1): completed" in errors and "run 1 (seed=2): failed" in errors
    assert json.loads(record.read_text())["status"] == "completed"


def test_check_reads_no_more_than_text():
    config = changed(model={"_target_": 3}, scheduler={"_target_": None})
    security.check(config, [])
    with pytest.raises(UserError, match=r"^model\.a\[1\]\._target_=b\.c: "):
        security.check(changed(config, model={"a": [1, {"_target_": "b.c"}]}), [])


ENV_SET = "hydra: {job: {env_set: {LAPTIME_ALLOWED_TARGETS: tell_tale, WHICH: tell_tale.Net}}}\n"


def test_variables_that_a_file_sets_add_nothing(tell_tale, work_folder, capfd):
    for name, content in {
        "experiment/evil.yaml": f"# @package _global_\ndefaults:\n  - override /model: evil\n{ENV_SET}",
        "model/evil.yaml": "_target_: ${oc.env:WHICH,torch.nn.Identity}\n",
    }.items():
        path = work_folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert ended(["--config-dir", "conf", "experiment=evil", *TINY_NET]) == 2
    assert "model._target_" in capfd.readouterr().err
    assert not tell_tale.exists()


@pytest.mark.soak
def test_a_doctored_sweep_sets_no_variables_and_names_nothing(tell_tale, work_folder, capfd):
    assert ended(["-m", *TINY_NET, NO_REPORT, "seed=1", "hydra.sweep.dir=s"]) == 0
    path = work_folder / "s/multirun.yaml"
    content = yaml.safe_load(path.read_text())
    content["hydra"]["overrides"]["hydra"] += [
        "++hydra.job.env_set.LAPTIME_ALLOWED_TARGETS=tell_tale", "++hydra.job.env_set.WHICH=tell_tale.Net",
    ]  # fmt: skip
    content["hydra"]["overrides"]["task"] = [*TINY_NET, "seed=7", "model._target_=${oc.env:WHICH,torch.nn.Identity}"]
    path.write_text(yaml.safe_dump(content))
    capfd.readouterr()
    assert ended(["sweep.resume=s"]) != 0
    errors = capfd.readouterr().err
    assert "model=Identity" in errors and "tell_tale" not in errors
    assert not tell_tale.exists()


@pytest.mark.parametrize("arguments", [["--config-dir", "conf", "--cfg", "job"], ["--help"]])
def test_folders_of_configurations_bring_no_plugins(arguments, work_folder):
    for folder in ("", "conf"):
        (work_folder / folder / "hydra_plugins").mkdir(parents=True)
        (work_folder / folder / "hydra_plugins/evil.py").write_text("open('owned', 'w')\n")
    laptime = Path(sys.executable).with_name("laptime")
    subprocess.run([str(laptime), *arguments], check=True, capture_output=True, cwd=work_folder, timeout=240)
    assert not (work_folder / "owned").exists()


def test_a_folder_that_brings_a_package_of_an_allowed_name_runs_nothing(work_folder, capfd):
    package = work_folder / "conf/lightning/pytorch"
    package.mkdir(parents=True)
    (work_folder / "conf/model").mkdir()
    (work_folder / "conf/model/net.yaml").write_text("_target_: lightning.pytorch.callbacks.Net\n")
    for path in (package.parent / "__init__.py", package / "__init__.py", package / "callbacks.py"):
        path.write_text("open('ran', 'w')\nclass Net: pass\n")
    with pytest.raises(SystemExit) as end:
        main(["--config-dir", "conf", "model=net"])
    assert end.value.code == 2 and "is not on the allow-list" in capfd.readouterr().err
    assert not (work_folder / "ran").exists()
