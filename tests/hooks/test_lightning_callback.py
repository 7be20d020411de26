"""What Laptime needs of both of Lightning's packages, pinned to what is installed. Importing `lightning` takes seconds,
so what needs it in the default run stands here."""

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
def each(request) -> Tiny:
    return Tiny(importlib.import_module(request.param))


def test_callback_base_defines_every_lightning_hook(each):
    """None but those: of a hook that Lightning no longer calls, LapTimer would hear nothing."""
    kind = each.L.Callback
    own = {name for name in vars(LightningCallback) if not name.startswith("__")}
    asked = {name for name in vars(kind) if not name.startswith("__")} - {"_generate_state_key", "state_key"}
    assert asked == own - {"state_key"}
    hooks = {name for name, value in vars(LapTimer).items() if inspect.isfunction(value)} & asked
    for name in hooks:
        wanted, given = (list(inspect.signature(getattr(of, name)).parameters) for of in (kind, LapTimer))
        assert [each.strip("_") for each in given] == wanted, name


def test_timer_is_a_callback_of_both_packages(each):
    timer = LapTimer()
    assert isinstance(timer, each.L.Callback) and isinstance(timer, LapTimer) and isinstance(timer, LightningCallback)
    assert not isinstance(timer, each.L.LightningModule)
    assert len(callback_classes()) in (1, 2) and type(timer) is LapTimer
    with pytest.raises(TypeError):
        timer.__class__ = object


def test_a_timer_can_be_pickled_and_copied(each):
    timer = LapTimer(every=3, config={"a": [1]})
    for other in (pickle.loads(pickle.dumps(timer)), copy.deepcopy(timer), copy.copy(timer)):
        assert type(other) is LapTimer and isinstance(other, each.L.Callback)
        assert other.settings == timer.settings and other.state_key == timer.state_key


def test_timers_have_unique_state_keys_and_no_state():
    assert len({LapTimer().state_key for _ in range(3)}) == 3
    assert LapTimer().state_dict() == {}


class Notes:
    """In front of a profiler: what a Trainer tells it."""

    def __init__(self, profiler) -> None:
        self.told: list[str] = []
        self._profiler_start = profiler.start
        profiler.start = self.start

    def start(self, action: str) -> None:
        self.told.append(action)
        self._profiler_start(action)


@pytest.mark.parametrize("kind", ["Classifier", "Gan"])
def test_trainer_profiles_the_actions_that_laptime_listens_to(kind, each, work_folder):
    module = getattr(each, kind)()
    trainer = each.trainer(
        each.L.callbacks.ModelCheckpoint(dirpath="checkpoints", every_n_train_steps=2, save_top_k=-1),
        max_epochs=2, enable_checkpointing=True,
    )  # fmt: skip
    told = Notes(trainer.profiler).told
    trainer.fit(module, loader(4))
    del trainer.profiler.start
    assert told.count("run_training_epoch") == 2 and told.count("run_training_batch") == 8
    assert told.count("save_checkpoint") == trainer.global_step / 2
    # A ninth and tenth time a batch would be asked for where the loader's length is unknown.
    assert sum(action.endswith("train_dataloader_next") for action in told) == 8
    (step,) = {action for action in told if action.endswith(".training_step")}
    assert phase_of(step) == "forward"
    (moved,) = {action for action in told if action.endswith(".batch_to_device")}
    assert phase_of(moved) == "host_to_device"
    optimizer = [action for action in told if phase_of(action) == "optimizer" and "zero_grad" not in action]
    assert len(optimizer) == (16 if kind == "Gan" else 8), set(told)
    name = f"[LightningModule]{kind}."
    passes = 16 if kind == "Gan" else 8
    assert told.count(f"{name}on_before_backward") == told.count(f"{name}on_after_backward") == passes
    # The order within a batch; validation, checkpoints and epochs are outside of it.
    first = told.index("run_training_batch")
    before = next(index for index, action in enumerate(told) if action.endswith("train_dataloader_next"))
    assert told.index("run_training_epoch") < before < told.index(moved) < first < told.index(step)


def test_a_training_of_each_package_is_timed(each, timed):
    checkpoint = each.L.callbacks.ModelCheckpoint(dirpath="checkpoints")
    each.fit(LapTimer(dir="run", seed=1, peak=False), checkpoint, num_batches=12, num_val=1, enable_checkpointing=True)
    record = timed.record
    assert record["status"] == "completed" and len(timed.rows) == 3 and timed.warnings == []
    assert record["breakdown"]["step_s"] and record["model"]["flops_per_batch"]
    each.fit(
        LapTimer(dir="again", seed=1, peak=False), checkpoint, max_epochs=4, enable_checkpointing=True,
        ckpt_path=checkpoint.best_model_path,
    )  # fmt: skip
