"""Objects of the open groups are used as their authors intend, or refused before anything is written."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.configs import changed, composed
from tests.support.settings import TINY

import laptime
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.training import open_groups

Call = Callable[..., SimpleNamespace]
OTHER_MODEL = [override for override in TINY if "hidden_sizes" not in override] + [
    "~model.hidden_sizes",
    "~model.dropout",
]
EPOCH = "training.epochs=1"
LIGHTNING = "pytorch_lightning.callbacks"


def refused(call: Call, work_folder: Path, key: str, *overrides: str) -> str:
    """The first line of a command that is refused and leaves nothing behind."""
    before = set(work_folder.rglob("*"))
    ended = call(*overrides, EPOCH)
    assert ended.returncode == 2, ended.stderr
    line = str(ended.stderr.splitlines()[0])
    assert line.startswith(f"error: {key}"), ended.stderr
    assert len(ended.stderr.splitlines()) <= 2, ended.stderr
    assert set(work_folder.rglob("*")) == before
    return line


@pytest.fixture(scope="module")
def config() -> Config:
    """A valid configuration."""
    return composed(*TINY, "scheduler=none")


def build_all(config: Config) -> None:
    """Check a configuration as a command does, then build the objects as a training does."""
    open_groups.check_open_groups(config)
    network = open_groups.build(config, "model", input_shape=(1, 8, 8), num_classes=10)
    optimizer = open_groups.build(config, "optimizer", params=network.parameters())
    if config.scheduler["_target_"] is not None:
        open_groups.build(config, "scheduler", optimizer=optimizer, num_steps_per_epoch=3)
    for key, _ in open_groups.entries(config, "callbacks"):
        open_groups.build(config, key)


def node(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target if "." in target else f"nested_parts.{target}", **arguments}


# LightningModules, and classes of the package `lightning`.


@pytest.fixture
def other_lightning(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `lightning`, of which Laptime's `pytorch_lightning` knows nothing; in place of the real one, which
    other tests of this process may have loaded."""
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "lightning"}
    for name in loaded:
        del sys.modules[name]
    package = work_folder / "lightning/pytorch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(
        "from torch import nn\n\n\nclass LightningModule(nn.Module): ...\nclass LitNet(LightningModule): ...\n"
        + "".join(f"class {name}: ...\nclass Own{name}({name}): ...\n" for name in ("Callback", "Logger", "Profiler"))
    )
    monkeypatch.syspath_prepend(work_folder)
    yield
    for name in [module_name for module_name in sys.modules if module_name.split(".")[0] == "lightning"]:
        del sys.modules[name]
    sys.modules.update(loaded)


IN_FUNCTION = node("Holds", inner=node("torch.nn.Sequential", _args_=[node("lit_net", num_classes=64)]))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("model", "key"),
    [
        (node("LitNet"), "model._target_=nested_parts.LitNet"),
        (node("lit_net"), "model._target_=nested_parts.lit_net"),
        (node("around_lit_net"), "model._target_=nested_parts.around_lit_net"),
        (node("Holds", inner=node("LitNet")), "model.inner._target_=nested_parts.LitNet"),
        (IN_FUNCTION, "model._target_=nested_parts.Holds"),
        (node("lightning.pytorch.LitNet"), "model._target_=lightning.pytorch.LitNet"),
    ],
    ids=["class", "function", "function around it", "nested", "nested function", "of lightning"],
)
def test_a_lightning_module_is_refused_as_a_model(model, key, config, other_lightning):
    with pytest.raises(UserError, match="LightningModule") as caught:
        build_all(changed(config, model=model))
    assert str(caught.value).startswith(key)


@pytest.mark.parametrize("target", ["LitNet", "lit_net"])
def test_a_command_with_a_lightning_module_leaves_nothing_behind(target, call, work_folder):
    refused(call, work_folder, "model._target_=", *OTHER_MODEL, f"model._target_=nested_parts.{target}")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("callbacks", "lightning.pytorch.OwnCallback"),
        ("logger", "lightning.pytorch.OwnLogger"),
        ("profiler", "lightning.pytorch.OwnProfiler"),
    ],
)
def test_classes_of_the_package_lightning_are_refused_with_the_right_package(group, target, config, other_lightning):
    with pytest.raises(UserError, match="pytorch_lightning") as caught:
        open_groups.check_open_groups(
            changed(config, **{group: node(target) if group == "profiler" else {"mine": node(target)}})
        )
    assert f"_target_={target}" in str(caught.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("dataset", "nested_parts.LitData"),
        ("model", "torch.optim.SGD"),
        ("optimizer", "torch.nn.GELU"),
        ("scheduler", "torch.nn.GELU"),
        ("scheduler", "torch.optim.SGD"),
        ("profiler", "torch.nn.GELU"),
        ("callbacks", "torch.nn.GELU"),
        ("logger", "pytorch_lightning.callbacks.LearningRateMonitor"),
    ],
)
def test_a_class_of_the_wrong_group_is_refused(group, target, config):
    described = {"mine": node(target)} if group in ("callbacks", "logger") else node(target)
    with pytest.raises(UserError, match=f"^{group}.*{target}"):
        open_groups.check_open_groups(changed(config, **{group: described}))


@pytest.mark.unit
@pytest.mark.parametrize("group", ["scheduler", "profiler"])
def test_arguments_without_a_target_are_refused(group, config):
    open_groups.check_open_groups(changed(config, **{group: {"_target_": None}}))
    with pytest.raises(UserError, match=rf"^{group}\.gamma=0\.5: "):
        open_groups.check_open_groups(changed(config, **{group: {"_target_": None, "gamma": 0.5}}))


# Nested objects.

LAYERS = [
    "model._target_=nested_parts.Layers",
    "+model.layers=[{_target_:torch.nn.Linear,in_features:64,out_features:64},{_target_:torch.nn.GELU}]",
    "+model.last={_target_:torch.nn.LayerNorm,_partial_:true,normalized_shape:[64]}",
    "+model.named={middle:{_target_:torch.nn.Sequential,_args_:[{_target_:torch.nn.Identity},{_target_:torch.nn.Tanh}]}}",
]


@pytest.fixture(scope="module")
def nested_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model and callback have nested objects."""
    folder = tmp_path_factory.mktemp("nested")
    callback = "+callbacks.mine={_target_:nested_parts.Inner,inner:{_target_:torch.nn.GELU}}"
    record = laptime.run([*OTHER_MODEL, *LAYERS, callback, EPOCH, f"hydra.run.dir={folder / 'run'}"])
    assert record["status"] == "completed"
    # Two linear layers and a LayerNorm of 64 values: the nested objects were built and trained.
    assert record["model"]["num_parameters"] == 64 * 65 + 2 * 64 + 65 * 10
    return folder / "run"


def test_evaluate_and_export_rebuild_nested_objects(nested_run, work_folder, capsys):
    from laptime.evaluation.main import main as evaluate
    from laptime.exporting.main import main as export

    shutil.copytree(nested_run, work_folder / "run")
    assert evaluate(["run=run", "latency.batch_sizes=[]"]) == 0, capsys.readouterr().err
    assert export(["run=run", "format=torch_export", "latency.num_calls=2"]) == 0, capsys.readouterr().err


def test_nested_targets_of_a_record_must_be_on_the_allow_list(nested_run, work_folder, capsys):
    from laptime.evaluation.main import main as evaluate

    shutil.copytree(nested_run, work_folder / "run")
    record = (work_folder / "run/run.json").read_text()
    assert '"torch.nn.GELU"' in record
    (work_folder / "run/run.json").write_text(record.replace('"torch.nn.GELU"', '"os.getcwd"'))
    assert evaluate(["run=run", "latency.batch_sizes=[]"]) == 2
    assert "model.layers[1]._target_=os.getcwd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inner", "key"),
    [
        ("{_target_:torch.nn.GELU,approx:tanh}", "callbacks.mine.inner.approx=tanh"),
        ("{_target_:torch.nn.Conv2d,in_channels:3,out_channels:4,kernel_size:3,groups:2}", "callbacks.mine.inner"),
    ],
    ids=["seen by its signature", "seen by its constructor"],
)
def test_a_command_with_a_mistake_in_a_nested_object_leaves_nothing_behind(inner, key, call, work_folder):
    refused(call, work_folder, key, *TINY, f"+callbacks.mine={{_target_:nested_parts.Inner,inner:{inner}}}")


# Schedulers, and callbacks that monitor a metric.

TORCH = "torch.optim.lr_scheduler"


@pytest.mark.unit
@pytest.mark.parametrize(
    "scheduler",
    [
        node(f"{TORCH}.OneCycleLR", max_lr=0.1, total_steps=9),
        node(f"{TORCH}.CyclicLR", base_lr=0.001, max_lr=0.1),
        node("OwnOneCycle", max_lr=0.1, total_steps=9),
        node("one_cycle"),
        node("one_cycle_after_another"),
    ],
    ids=["one cycle", "cyclic", "subclass", "function", "within another"],
)
def test_per_step_schedulers_are_refused_with_an_alternative(scheduler, config):
    with pytest.raises(UserError, match=r"^scheduler\._target_=.*scheduler=one_cycle"):
        build_all(changed(config, scheduler=scheduler))


@pytest.mark.parametrize("around", ["chained", "after_another"])
def test_a_step_schedule_inside_another_scheduler_is_refused(around, config):
    with pytest.raises(UserError, match=r"^scheduler\._target_=nested_parts\..*OneCycle"):
        build_all(changed(config, scheduler=node(f"own_one_cycle_{around}")))


@pytest.mark.unit
@pytest.mark.parametrize(
    "scheduler", [node(f"{TORCH}.ReduceLROnPlateau", mode="max"), node("OwnPlateau"), node("plateau_of_more")], ids=str
)
def test_a_plateau_scheduler_must_minimize_the_loss(scheduler, config):
    with pytest.raises(UserError, match=r"^scheduler\.mode=max: "):
        build_all(changed(config, scheduler=scheduler))


def test_a_command_with_the_wrong_mode_leaves_nothing_behind(call, work_folder):
    refused(call, work_folder, "scheduler.mode=max", *TINY, "scheduler=plateau", "scheduler.mode=max")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("callback", "mode"),
    [
        (node(f"{LIGHTNING}.EarlyStopping", monitor="val_accuracy"), "min"),
        (node(f"{LIGHTNING}.EarlyStopping", monitor="val_loss", mode="max"), "max"),
        (node(f"{LIGHTNING}.ModelCheckpoint", monitor="val_accuracy"), "min"),
        (node(f"{LIGHTNING}.ModelCheckpoint", monitor="val_loss", mode="max"), "max"),
        (node("OwnStopping"), "min"),
        (node("OwnStopping", mode="min"), "min"),
    ],
    ids=str,
)
def test_a_callback_with_the_wrong_mode_is_refused(callback, mode, config):
    with pytest.raises(UserError, match=rf"^callbacks\.mine\.mode={mode}: "):
        build_all(changed(config, callbacks={"mine": callback}))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("group", "described"),
    [
        ("scheduler", node(f"{TORCH}.ReduceLROnPlateau")),
        ("scheduler", node("OwnPlateau")),
        ("callbacks", {"mine": node(f"{LIGHTNING}.EarlyStopping", monitor="val_loss")}),
    ],
)
def test_monitoring_a_validation_metric_needs_a_validation_set(group, described, config):
    without = {**config.dataset, "val_fraction": 0.0}
    with pytest.raises(UserError, match=rf"^{group}.*dataset\.val_fraction=0"):
        open_groups.check_open_groups(changed(config, **{"dataset": without, group: described}))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("group", "described"),
    [
        ("model", node("HasTrainingStep")),
        ("scheduler", node(f"{TORCH}.ReduceLROnPlateau")),
        ("scheduler", node(f"{TORCH}.ExponentialLR", gamma=0.5)),
        ("scheduler", node("step_after_step")),
        (
            "scheduler",
            node("laptime.schedulers.one_cycle.OneCycle", epochs=1, warmup_fraction=0.3, start=0.04, end=0.0),
        ),
        ("callbacks", {"best": node(f"{LIGHTNING}.ModelCheckpoint")}),
        ("callbacks", {"best": node(f"{LIGHTNING}.ModelCheckpoint", monitor="val_accuracy", mode="max")}),
        ("callbacks", {"stop": node(f"{LIGHTNING}.EarlyStopping", monitor="own_metric", mode="max")}),
        ("callbacks", {"stop": node("OwnStopping", mode="max")}),
    ],
    ids=str,
)
def test_valid_objects_are_accepted(group, described, config):
    build_all(changed(config, **{group: described}))


# Messages.


@pytest.mark.unit
@pytest.mark.parametrize(
    ("target", "choice"),
    [
        ("torchvision.models.resnet18", "model=torchvision model.name=resnet18"),
        ("torchvision.models.get_model", "model=torchvision"),
        ("timm.create_model", "model=timm"),
        ("timm.models.resnet18", "model=timm model.name=resnet18"),
    ],
)
def test_a_function_of_a_model_library_is_refused_with_the_model_option(target, choice, config):
    with pytest.raises(UserError, match=rf"^model\._target_={target}: .*{choice}"):
        open_groups.check_open_groups(changed(config, model=node(target)))


@pytest.mark.parametrize(
    ("callbacks", "key"),
    [
        ([f"+callbacks.stop={{_target_:{LIGHTNING}.EarlyStopping,monitor:no_metric}}"], "callbacks.stop: "),
        (["+callbacks.odd._target_=nested_parts.Misconfigured"], "callbacks.odd: "),
    ],
)
def test_an_error_inside_a_callback_names_its_key(callbacks, key, call):
    ended = call(*TINY, *callbacks, EPOCH)
    assert ended.returncode == 1, ended.stderr
    assert key in ended.stderr.splitlines()[-1], ended.stderr


def test_two_callbacks_with_the_same_state_key_are_refused(call, work_folder):
    twice = [f"+callbacks.{name}={{_target_:{LIGHTNING}.EarlyStopping,monitor:val_loss}}" for name in "ab"]
    refused(call, work_folder, "Lightning: ", *TINY, *twice)
