"""Laps of Hugging Face's Trainer, with a GPT-2 of one layer made from a configuration."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.hooks.tiny import CHECKPOINT_S, DATA_S, STEP_S, VALIDATION_S
from tests.support.processes import ROOT
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import laptime

if find_spec("transformers") is None:  # importing it takes a second in each process that collects the tests
    pytest.skip("transformers is not installed", allow_module_level=True)

LENGTHS = [3, 8, 5, 1, 8, 2, 7, 4, 6, 6, 8, 1, 3, 5, 2, 8]  # lengths of the texts, padded to 8


class Texts(torch.utils.data.Dataset):
    """Padded texts. Loading one advances the faked time."""

    def __init__(self, lengths=LENGTHS, now=None) -> None:
        self.lengths, self.now = lengths, now

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int):
        if self.now is not None:
            self.now.s += DATA_S / 4
        ids = torch.arange(8) % 7 + index % 3
        mask = (torch.arange(8) < self.lengths[index]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


class Stream(torch.utils.data.IterableDataset):
    """Texts without a length: 16, or endless."""

    def __init__(self, ends: bool = True) -> None:
        self.ends = ends

    def __iter__(self):
        texts = Texts()
        yield from map(texts.__getitem__, range(len(texts)))
        while not self.ends:
            yield texts[0]


class Unpadded(Texts):
    """Texts of different lengths, without a mask."""

    def __getitem__(self, index: int):
        return {"input_ids": [1] * self.lengths[index], "labels": [1] * self.lengths[index]}


def model(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 9, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**(shape | settings)))


def trainer(*callbacks, now=None, lengths=LENGTHS, seed: int = 1, data=None, collator=None, trains=None, **settings):
    """A Trainer that trains two epochs in batches of 4, and advances the faked time."""
    from transformers import Trainer, TrainingArguments

    class Faked(Trainer):
        def training_step(self, *args, **kwargs):
            if now is not None:
                now.s += STEP_S
            return super().training_step(*args, **kwargs)

        def prediction_step(self, *args, **kwargs):
            if now is not None:
                now.s += VALIDATION_S
            return super().prediction_step(*args, **kwargs)

        def _save_checkpoint(self, *args, **kwargs):
            if now is not None:
                now.s += CHECKPOINT_S
            return super()._save_checkpoint(*args, **kwargs)

    quiet = {
        "output_dir": "checkpoints", "num_train_epochs": 2, "per_device_train_batch_size": 4, "report_to": [],
        "per_device_eval_batch_size": 4, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "logging_strategy": "no", "seed": seed, "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = TrainingArguments(**(quiet | settings))
    evaluates = arguments.eval_strategy != "no"
    return Faked(
        trains or model(), arguments, train_dataset=data or Texts(lengths, now), callbacks=[*callbacks],
        eval_dataset=Texts(LENGTHS[:4]) if evaluates else None, data_collator=collator,
    )  # fmt: skip


@pytest.fixture
def callback():
    def make(**settings):
        return laptime.LapTimerCallback(**({"dir": "run", "peak": False} | settings))

    return make


def losses(trained) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def test_a_padded_text_with_accumulation_and_evaluation(callback, timed, now):
    """The only test of the default run: laps, tokens by the mask, evaluation excluded, and nothing changed."""
    settings = {"gradient_accumulation_steps": 2, "eval_strategy": "epoch", "logging_strategy": "steps",
                "logging_steps": 1, "num_train_epochs": 3}  # fmt: skip
    plain = trainer(**settings)
    plain.train()
    after = torch.get_rng_state()
    score = {"metric": "eval_loss", "name": "cross entropy", "direction": "min"}
    trained = trainer(callback(score=score), now=now, **settings)
    trained.train()
    assert torch.equal(torch.get_rng_state(), after) and losses(trained) == losses(plain) and len(losses(plain)) == 6
    assert all(map(torch.equal, plain.model.state_dict().values(), trained.model.state_dict().values()))
    assert not trained.model._forward_pre_hooks and not trained.model._forward_hooks
    assert timed.column("num_tokens") == [sum(LENGTHS)] * 3 and timed.column("num_samples") == [16] * 3
    assert timed.column("num_batches") == [2] * 3  # optimizer steps
    assert timed.column("epoch_time_s") == [4 * (DATA_S + STEP_S)] * 3 and timed.column("apart_s") == [0.0] * 3
    assert timed.column("is_warmup") == [True, False, False]
    assert all(loss is not None for loss in timed.column("val_loss"))
    assert timed.column("val_score") == timed.column("val_loss")
    record = timed.record
    assert (record["status"], record["lap"]["timer"], record["seed"]) == ("completed", "transformers", 1)
    assert record["timing"]["tokens_per_s"] == sum(LENGTHS) / (4 * (DATA_S + STEP_S))
    assert record["batch"]["per_rank_batch_size"] == 8
    assert record["config"]["training"]["gradient_accumulation_steps"] == 2
    assert record["config"]["model"]["n_layer"] == 1
    assert timed.warnings == [] and timed.lines[0].startswith("lap 1/3  ")


def fails_at(step: int, error: BaseException, hook: str = "forward"):
    """A callback that makes a training fail once: in a training step, or in a callback's hook."""
    from transformers import TrainerCallback

    class Fails(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step and hook == "forward":
                self.handle = kwargs["model"].register_forward_pre_hook(self.fail)

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == step and hook == "callback" and not hasattr(self, "handle"):
                self.handle = None
                raise error

        def fail(self, *_):
            self.handle.remove()
            self.on_step_begin = lambda *_, **__: None
            raise error

    return Fails()


def nothing_is_left(trained) -> bool:
    """Whether the Trainer, its model and the process are restored."""
    from torch.optim import optimizer

    hooks = (trained.model._forward_hooks, trained.model._forward_pre_hooks, optimizer._global_optimizer_pre_hooks)
    watched = {"training_step", "get_batch_samples"} & set(vars(trained))
    return not any(hooks) and not watched and not _get_current_dispatch_mode_stack()


# FLOPs are counted in step 1; phases are being measured in step 5.
@pytest.mark.parametrize("step", [1, pytest.param(5, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("at https://u:secret@host"), "failed"),
        pytest.param(KeyboardInterrupt(), "interrupted", marks=pytest.mark.soak),
    ],
)
def test_failed_step_ends_the_run_and_restores_the_trainer(step, error, status, callback, timed):
    trained = trainer(callback(), fails_at(step, error), lengths=LENGTHS * 2)
    with pytest.raises(type(error)):
        trained.train()
    assert nothing_is_left(trained)
    assert timed.record["status"] == status
    assert timed.record["error"]["type"] == type(error).__name__ and "secret" not in timed.record["error"]["message"]
    again = trainer(callback(dir="again"), trains=trained.model)
    again.train()
    assert again.state.global_step == 8 and timed.warnings == []
    assert json.loads(Path("again/run.json").read_text())["status"] == "completed"


soak = pytest.mark.soak


@soak
@pytest.mark.parametrize("new", ["nothing", "callback", "Trainer"])
def test_error_outside_a_step_is_recorded_on_restart(new, callback, timed):
    timer, error = callback(), RuntimeError("disk full")
    trained = trainer(timer, fails_at(1, error, "callback"))
    with pytest.raises(RuntimeError, match="disk full"):
        trained.train()
    assert timed.record["status"] == "running" and not _get_current_dispatch_mode_stack()
    if new == "callback":
        trained = trainer(callback(dir="run_1"), trains=trained.model)
    elif new == "Trainer":
        trained = trainer(timer, trains=trained.model)
    trained.train()
    assert timed.record["status"] == "failed" and "restarted" in timed.record["error"]["message"]
    assert json.loads(Path("run_1/run.json").read_text())["status"] == "completed"
    assert nothing_is_left(trained) and timed.warnings == []


@soak
def test_failed_training_is_freed(callback, timed):
    """Neither the process nor the run keeps the model alive. Deleting the Trainer ends the run."""
    trained = trainer(callback(), fails_at(5, RuntimeError("disk full"), "callback"), lengths=LENGTHS * 2)
    trains = weakref.ref(trained.model)
    with contextlib.suppress(RuntimeError):
        trained.train()
    del trained
    gc.collect()
    assert trains() is None
    assert timed.record["status"] == "failed" and "outside a training step" in timed.record["error"]["message"]


@soak
def test_script_that_ends_during_the_training(work_folder, timed):
    Path("script.py").write_text(
        "from tests.hooks.test_transformers import fails_at, trainer\n"
        "import laptime\n"
        "timer = laptime.LapTimerCallback(dir='run', peak=False)\n"
        "trainer(timer, fails_at(2, KeyboardInterrupt(), 'callback')).train()\n"
    )
    python_path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    environment = os.environ | {"PYTHONPATH": python_path}
    subprocess.run([sys.executable, "script.py"], capture_output=True, timeout=120, check=False, env=environment)
    assert (timed.record["status"], timed.record["error"]["type"]) == ("interrupted", "KeyboardInterrupt")


@soak
def test_auto_find_batch_size(callback, timed):
    error = RuntimeError("CUDA out of memory.")
    trained = trainer(callback(), fails_at(1, error), auto_find_batch_size=True)
    trained.train()
    assert timed.record["status"] == "failed" and "out of memory" in timed.record["error"]["message"]
    record = json.loads(Path("run_1/run.json").read_text())
    assert record["status"] == "completed" and record["batch"]["per_rank_batch_size"] == 3
    assert record["config"]["training"]["per_device_train_batch_size"] == 3
    assert nothing_is_left(trained) and timed.warnings == []


@soak
def test_users_training_step_is_restored(callback, timed):
    trained, steps = trainer(callback()), []
    original = trained.training_step

    def user_step(*args, **kwargs):
        steps.append(args)
        return original(*args, **kwargs)

    trained.training_step = user_step
    trained.train()
    assert len(steps) == 8 and trained.training_step is user_step and timed.column("num_samples") == [16] * 2


@soak
def test_trainer_that_is_not_found(callback, timed, monkeypatch):
    monkeypatch.setattr("laptime.hooks.transformers.trainer_of", lambda state: None)
    trained = trainer(callback(), lengths=LENGTHS[:14])
    trained.train()
    assert timed.column("num_samples") == [14] * 2 and timed.column("num_tokens") == [None] * 2
    assert "Trainer" in timed.record["missing"]["model.flops_per_batch"] and nothing_is_left(trained)


@soak
@pytest.mark.parametrize("accumulation", [1, 2])
def test_data_of_unknown_length(accumulation, callback, timed):
    settings = {"gradient_accumulation_steps": accumulation, "max_steps": 14 // accumulation}
    trainer(callback(), data=Stream(), **settings).train()
    assert timed.column("epoch") == [0, 1, 2] and timed.column("is_warmup") == [True, False, False]
    assert timed.column("num_batches") == [4 // accumulation] * 3 and timed.column("num_samples") == [16] * 3
    (warning,) = timed.warnings
    assert "the data has no length" in warning and not any("partial" in line for line in timed.lines)


@soak
def test_data_without_end(callback, timed):
    trainer(callback(), data=Stream(ends=False), max_steps=6).train()
    (warning,) = timed.warnings
    assert "Pass every=" in warning and "no epoch ended" in timed.record["missing"]["timing"]


@soak
def test_data_without_end_in_laps_of_steps(callback, timed):
    trainer(callback(every=2), data=Stream(ends=False), max_steps=6).train()
    assert timed.column("num_batches") == [2] * 3 and timed.warnings == []


@soak
def test_a_resume_with_data_of_unknown_length(callback, timed):
    trainer(data=Stream(), max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer(callback(), data=Stream(), max_steps=13).train(resume_from_checkpoint="checkpoints/checkpoint-2")
    assert timed.column("num_batches") == [2, 4, 4] and timed.column("is_warmup") == [True, True, False]
    assert "partial" in timed.lines[0] and not any("partial" in line for line in timed.lines[1:])


@soak
def test_a_model_that_is_called_twice_in_a_step(callback, timed):
    trained = trainer(callback())
    loss_of = trained.compute_loss

    def twice(model, inputs, **kwargs):
        model(**inputs)
        return loss_of(model, inputs, **kwargs)

    trained.compute_loss = twice
    trained.train()
    assert timed.column("num_samples") == [16] * 2 and timed.column("num_tokens") == [sum(LENGTHS)] * 2


@soak
def test_a_compiled_model(callback, timed):
    trained = trainer(callback(), torch_compile=True, torch_compile_backend="eager")
    trained.train()
    assert timed.column("num_samples") == [16] * 2 and timed.column("num_tokens") == [sum(LENGTHS)] * 2
    missing = timed.record["missing"]
    assert "compiled" in missing["breakdown"] and "compiled" in missing["model.flops_per_batch"]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@soak
@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("kernel", [False, True])
def test_batches_without_padding(kernel, is_told, callback, timed):
    from transformers import DataCollatorWithFlattening

    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=kernel)
    settings = {"samples": lambda inputs: int((inputs["position_ids"] == 0).sum())} if is_told else {}
    trained = trainer(callback(**settings), data=Unpadded(), collator=collate, trains=model(n_positions=64))
    trained.train()
    assert timed.column("num_samples") == [16 if is_told else None] * 2
    assert timed.column("num_tokens") == [sum(LENGTHS)] * 2
    if is_told:
        assert timed.warnings == []
    else:
        (warning,) = timed.warnings
        assert "Pass samples=" in warning and "one row" in timed.record["missing"]["timing.samples_per_s"]


@soak
@pytest.mark.parametrize("where", ["arguments", "model", "nowhere"])
def test_recomputation_is_not_counted(where, callback, timed):
    trained = trainer(callback(), gradient_checkpointing=where == "arguments")
    if where == "model":
        trained.model.gradient_checkpointing_enable()
    trained.train()
    record = timed.record
    if where == "nowhere":
        assert record["model"]["flops_per_batch"] > 0
    else:
        assert record["model"]["flops_per_batch"] is None
        assert "gradient checkpointing" in record["missing"]["model.flops_per_batch"]


@soak
def test_flops_of_a_step_with_accumulation_are_those_of_all_its_batches(callback, timed):
    trainer(callback(), lengths=LENGTHS * 2).train()
    whole = timed.record["model"]
    trainer(callback(dir="other"), lengths=LENGTHS * 2, gradient_accumulation_steps=2).train()
    accumulated = json.loads(Path("other/run.json").read_text())["model"]
    assert accumulated["flops_per_batch"] == 2 * whole["flops_per_batch"]
    assert accumulated["flops_per_sample"] == whole["flops_per_sample"]


@soak
@pytest.mark.parametrize("what", ["eval", "save", "both", "best"])
def test_evaluation_and_checkpoints_during_an_epoch_are_excluded(what, callback, timed, now):
    settings = {}
    if what != "save":
        settings |= {"eval_strategy": "steps", "eval_steps": 1}
    if what != "eval":
        settings |= {"save_strategy": "steps", "save_steps": 1}
    if what == "best":
        settings |= {"load_best_model_at_end": True}
    trainer(callback(), now=now, **settings).train()
    apart = (what != "save") * VALIDATION_S + (what != "eval") * CHECKPOINT_S
    assert timed.column("epoch_time_s") == [4 * (DATA_S + STEP_S)] * 2
    assert timed.column("apart_s") == [3 * apart] * 2  # the lap is over before those of the last step
    assert timed.column("data_wait_s") == [4 * DATA_S] * 2


@soak
@pytest.mark.parametrize(("every", "laps"), [(1, 8), (2, 4), (3, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("evaluates", [False, True])
def test_laps_of_steps_continue_across_epochs(evaluates, every, laps, callback, timed, now):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "epoch"} if evaluates else {}
    trainer(callback(every=every), now=now, logging_strategy="steps", logging_steps=1, **settings).train()
    assert timed.column("num_batches") == [every] * laps and timed.column("epoch") == list(range(laps))
    # The Trainer's loader is one batch ahead, so the first lap of an epoch has one more and a later one has one less.
    assert all(abs(time - every * (DATA_S + STEP_S)) <= DATA_S for time in timed.column("epoch_time_s"))
    if 8 % every == 0:
        assert sum(timed.column("epoch_time_s")) == 8 * (DATA_S + STEP_S)
    assert timed.column("num_samples") == [4 * every] * laps
    assert all(loss is not None for loss in timed.column("train_loss"))
    assert timed.record["lap"]["num_batches"] == every


@soak
def test_max_steps(callback, timed):
    trained = trainer(callback(), max_steps=6)
    trained.train()
    assert trained.state.global_step == 6 and timed.column("num_batches") == [4]
    assert timed.record["status"] == "completed"


@soak
def test_a_last_batch_that_is_smaller(callback, timed):
    trainer(callback(), lengths=LENGTHS[:14]).train()
    assert timed.column("num_samples") == [14] * 2 and timed.column("num_tokens") == [sum(LENGTHS[:14])] * 2


@soak
def test_phases_are_measured_in_the_warm_up_lap(callback, timed):
    trained = trainer(callback(peak=True), lengths=LENGTHS * 4)
    trained.train()
    breakdown, record = timed.record["breakdown"], timed.record
    assert all(breakdown[f"{part}_s"] > 0 for part in ("data", "forward", "backward", "optimizer", "rest"))
    assert record["model"]["flops_per_batch"] > 0 and record["peak"]["mfu"] > 0
    assert not trained.model._forward_hooks


@soak
def test_two_callbacks(callback, timed):
    trainer(callback(), callback(dir="other")).train()
    assert len(timed.rows) == 2 and not Path("other").exists()
    (warning,) = timed.warnings
    assert "has several LapTimerCallbacks" in warning and "Remove the others" in warning


@soak
def test_a_callback_that_is_used_twice(callback, timed):
    timer = callback()
    trainer(timer).train()
    trained = trainer(timer)
    trained.train()
    assert trained.state.global_step == 8 and len(timed.rows) == 2
    (warning,) = timed.warnings
    assert "already timed a training" in warning


@soak
def test_every_larger_than_the_run(callback, timed):
    trained = trainer(callback(every=9))
    trained.train()
    (warning,) = timed.warnings
    assert "every=9: the training has only 8 steps" in warning and trained.state.global_step == 8


@soak
def test_samples_and_tokens_of_the_user(callback, timed):
    def fails(batch):
        raise KeyError("no such")

    trainer(callback(samples=lambda batch: len(batch["labels"]) * 2, tokens=fails)).train()
    assert timed.column("num_samples") == [32] * 2 and timed.column("num_tokens") == [None] * 2
    (warning,) = timed.warnings
    assert "tokens" in warning


@soak
@pytest.mark.parametrize(
    "broken", ["new_record", "LapClock.start", "LapClock.begin_wait", "LapClock.stop", "num_samples"]
)
def test_training_continues_when_the_timer_fails(broken, callback, timed, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("a bug")

    home = "batch_counter" if broken == "num_samples" else "timed_run"
    monkeypatch.setattr(f"laptime.hooks.{home}.{broken}", fails)
    trained = trainer(callback(), eval_strategy="steps", eval_steps=2)
    trained.train()
    assert trained.state.global_step == 8
    assert len(timed.warnings) == 1 and "a bug" in timed.warnings[0]


@soak
def test_resuming_mid_epoch_gives_a_partial_lap(callback, timed):
    trainer(save_strategy="steps", save_steps=2, num_train_epochs=1).train()
    trained = trainer(callback(), num_train_epochs=3)
    trained.train(resume_from_checkpoint="checkpoints/checkpoint-2")
    assert trained.state.global_step == 12
    assert timed.column("num_batches") == [2, 4, 4] and timed.column("is_warmup") == [True, True, False]
    assert "partial" in timed.lines[0]
