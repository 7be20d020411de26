"""The interfaces of both Lightning packages that Laptime needs, checked against the installed versions. Importing
`lightning` takes seconds, so all tests of the default run that import it are in this file."""

import copy
import importlib
import inspect
import pickle

import pytest
from tests.hooks.tiny import Tiny, loader

from laptime.hooks.lightning import LapTimer
from laptime.hooks.lightning_callback import LightningCallback, callback_classes
from laptime.hooks.profiler_listener import phase_of

PACKAGES = ("pytorch_lightning", "lightning.pytorch")


@pytest.fixture(params=PACKAGES)
def package(request) -> Tiny:
    return Tiny(importlib.import_module(request.param))


def test_callback_base_defines_every_lightning_hook(package):
    """And no other hooks: LapTimer must not rely on a hook that Lightning no longer calls."""
    callback = package.L.Callback
    defined = {name for name in vars(LightningCallback) if not name.startswith("__")}
    expected = {name for name in vars(callback) if not name.startswith("__")} - {"_generate_state_key", "state_key"}
    assert expected == defined - {"state_key"}
    hooks = {name for name, value in vars(LapTimer).items() if inspect.isfunction(value)} & expected
    for name in hooks:
        parameters, ours = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (callback, LapTimer))
        assert [parameter.strip("_") for parameter in ours] == parameters, name


def test_timer_is_a_callback_of_both_packages(package):
    timer = LapTimer()
    assert (
        isinstance(timer, package.L.Callback) and isinstance(timer, LapTimer) and isinstance(timer, LightningCallback)
    )
    assert not isinstance(timer, package.L.LightningModule)
    assert len(callback_classes()) in (1, 2) and type(timer) is LapTimer
    with pytest.raises(TypeError):
        timer.__class__ = object


def test_a_timer_can_be_pickled_and_copied(package):
    timer = LapTimer(every=3, config={"a": [1]})
    for other in (pickle.loads(pickle.dumps(timer)), copy.deepcopy(timer), copy.copy(timer)):
        assert type(other) is LapTimer and isinstance(other, package.L.Callback)
        assert other.settings == timer.settings and other.state_key == timer.state_key


def test_timers_have_unique_state_keys_and_no_state():
    assert len({LapTimer().state_key for _ in range(3)}) == 3
    assert LapTimer().state_dict() == {}


class Notes:
    """Wraps a profiler, and notes the actions that a Trainer starts."""

    def __init__(self, profiler) -> None:
        self.actions: list[str] = []
        self._profiler_start = profiler.start
        profiler.start = self.start

    def start(self, action: str) -> None:
        self.actions.append(action)
        self._profiler_start(action)


@pytest.mark.parametrize("kind", ["Classifier", "Gan"])
def test_trainer_profiles_the_actions_that_laptime_listens_to(kind, package, work_folder):
    module = getattr(package, kind)()
    trainer = package.trainer(
        package.L.callbacks.ModelCheckpoint(dirpath="checkpoints", every_n_train_steps=2, save_top_k=-1),
        max_epochs=2, enable_checkpointing=True,
    )  # fmt: skip
    actions = Notes(trainer.profiler).actions
    trainer.fit(module, loader(4))
    del trainer.profiler.start
    assert actions.count("run_training_epoch") == 2 and actions.count("run_training_batch") == 8
    assert actions.count("save_checkpoint") == trainer.global_step / 2
    # With a loader of unknown length, a ninth and a tenth batch would be requested.
    assert sum(action.endswith("train_dataloader_next") for action in actions) == 8
    (step,) = {action for action in actions if action.endswith(".training_step")}
    assert phase_of(step) == "forward"
    (moved,) = {action for action in actions if action.endswith(".batch_to_device")}
    assert phase_of(moved) == "host_to_device"
    optimizer = [action for action in actions if phase_of(action) == "optimizer" and "zero_grad" not in action]
    assert len(optimizer) == (16 if kind == "Gan" else 8), set(actions)
    name = f"[LightningModule]{kind}."
    passes = 16 if kind == "Gan" else 8
    assert actions.count(f"{name}on_before_backward") == actions.count(f"{name}on_after_backward") == passes
    # The order within a batch.
    first = actions.index("run_training_batch")
    before = next(index for index, action in enumerate(actions) if action.endswith("train_dataloader_next"))
    assert actions.index("run_training_epoch") < before < actions.index(moved) < first < actions.index(step)


def test_a_training_of_each_package_is_timed(package, timed):
    checkpoint = package.L.callbacks.ModelCheckpoint(dirpath="checkpoints")
    package.fit(
        LapTimer(dir="run", seed=1, peak=False), checkpoint, num_batches=12, num_val=1, enable_checkpointing=True
    )
    record = timed.record
    assert record["status"] == "completed" and len(timed.rows) == 3 and timed.warnings == []
    assert record["breakdown"]["step_s"] and record["model"]["flops_per_batch"]
    package.fit(
        LapTimer(dir="again", seed=1, peak=False), checkpoint, max_epochs=4, enable_checkpointing=True,
        ckpt_path=checkpoint.best_model_path,
    )  # fmt: skip
