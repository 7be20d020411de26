"""Laps of Hugging Face's Trainer, with a GPT-2 of one layer made from a configuration."""

from pathlib import Path

import pytest
import torch
from tests.hooks.tiny import CHECKPOINT_S, DATA_S, STEP_S, VALIDATION_S

import laptime

pytest.importorskip("transformers")

LENGTHS = [3, 8, 5, 1, 8, 2, 7, 4, 6, 6, 8, 1, 3, 5, 2, 8]  # of texts, padded to 8


class Texts(torch.utils.data.Dataset):
    """Padded texts, of which each takes some of the faked time."""

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


def trainer(*callbacks, now=None, lengths=LENGTHS, seed: int = 1, **settings):
    """A Trainer of batches of 4 that takes faked time, and two epochs."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    class Faked(Trainer):
        def training_step(self, *args, **known):
            if now is not None:
                now.s += STEP_S
            return super().training_step(*args, **known)

        def prediction_step(self, *args, **known):
            if now is not None:
                now.s += VALIDATION_S
            return super().prediction_step(*args, **known)

        def _save_checkpoint(self, *args, **known):
            if now is not None:
                now.s += CHECKPOINT_S
            return super()._save_checkpoint(*args, **known)

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    quiet = {
        "output_dir": "checkpoints", "num_train_epochs": 2, "per_device_train_batch_size": 4, "report_to": [],
        "per_device_eval_batch_size": 4, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "logging_strategy": "no", "seed": seed, "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = TrainingArguments(**(quiet | settings))
    evaluates = arguments.eval_strategy != "no"
    return Faked(
        model, arguments, train_dataset=Texts(lengths, now), callbacks=[*callbacks],
        eval_dataset=Texts(LENGTHS[:4]) if evaluates else None,
    )  # fmt: skip


@pytest.fixture
def callback():
    def make(**settings):
        return laptime.LapTimerCallback(**({"dir": "run", "peak": False} | settings))

    return make


def losses(trained) -> list[float]:
    return [each["loss"] for each in trained.state.log_history if "loss" in each]


def test_a_padded_text_with_accumulation_and_evaluation(callback, timed, now):
    """The one test of the default run: laps, tokens by the mask, evaluation outside, and nothing is changed."""
    settings = {"gradient_accumulation_steps": 2, "eval_strategy": "epoch", "logging_strategy": "steps",
                "logging_steps": 1, "num_train_epochs": 3}  # fmt: skip
    plain = trainer(**settings)
    plain.train()
    after = torch.get_rng_state()
    trained = trainer(callback(), now=now, **settings)
    trained.train()
    assert torch.equal(torch.get_rng_state(), after) and losses(trained) == losses(plain) and len(losses(plain)) == 6
    assert all(map(torch.equal, plain.model.state_dict().values(), trained.model.state_dict().values()))
    assert not trained.model._forward_pre_hooks and not trained.model._forward_hooks
    assert timed.column("num_tokens") == [sum(LENGTHS)] * 3 and timed.column("num_samples") == [16] * 3
    assert timed.column("num_batches") == [2] * 3  # optimizer steps
    assert timed.column("epoch_time_s") == [4 * (DATA_S + STEP_S)] * 3 and timed.column("apart_s") == [0.0] * 3
    assert timed.column("is_warmup") == [True, False, False]
    assert all(loss is not None for loss in timed.column("val_loss"))
    record = timed.record
    assert (record["status"], record["lap"]["timer"], record["seed"]) == ("completed", "transformers", 1)
    assert record["timing"]["tokens_per_s"] == sum(LENGTHS) / (4 * (DATA_S + STEP_S))
    assert record["batch"]["per_rank_batch_size"] == 8
    assert record["config"]["training"]["gradient_accumulation_steps"] == 2
    assert record["config"]["model"]["n_layer"] == 1
    assert timed.warnings == [] and timed.lines[0].startswith("lap 1/3  ")


soak = pytest.mark.soak


@soak
@pytest.mark.parametrize("what", ["eval", "save", "both", "best"])
def test_evaluation_and_checkpoints_within_an_epoch_are_outside(what, callback, timed, now):
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
    assert timed.column("apart_s") == [3 * apart] * 2  # those of the last step come when the lap is over
    assert timed.column("data_wait_s") == [4 * DATA_S] * 2


@soak
@pytest.mark.parametrize(("every", "laps"), [(1, 8), (2, 4), (3, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("evaluates", [False, True])
def test_laps_of_steps_go_on_over_epochs(evaluates, every, laps, callback, timed, now):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "epoch"} if evaluates else {}
    trainer(callback(every=every), now=now, logging_strategy="steps", logging_steps=1, **settings).train()
    assert timed.column("num_batches") == [every] * laps and timed.column("epoch") == list(range(laps))
    # Its loader is one batch ahead: what the first lap of an epoch has too much, a later one lacks. Nothing is lost.
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
def test_the_steps_of_the_warm_up_are_taken_apart(callback, timed):
    trained = trainer(callback(peak=True), lengths=LENGTHS * 4)
    trained.train()
    breakdown, record = timed.record["breakdown"], timed.record
    assert all(breakdown[f"{part}_s"] > 0 for part in ("data", "forward", "backward", "optimizer", "rest"))
    assert record["model"]["flops_per_batch"] > 0 and record["peak"]["achieved_fraction"] > 0
    assert not trained.model._forward_hooks


@soak
def test_two_callbacks(callback, timed):
    trainer(callback(), callback(dir="other")).train()
    assert len(timed.rows) == 2 and not Path("other").exists()
    (warning,) = timed.warnings
    assert "has several" in warning and "Remove the others" in warning


@soak
def test_a_callback_that_is_used_twice(callback, timed):
    timer = callback()
    trainer(timer).train()
    trained = trainer(timer)
    trained.train()
    assert trained.state.global_step == 8 and len(timed.rows) == 2
    (warning,) = timed.warnings
    assert "used again" in warning


@soak
def test_every_larger_than_the_run(callback, timed):
    trained = trainer(callback(every=9))
    trained.train()
    (warning,) = timed.warnings
    assert "every=9: the training has 8 steps" in warning and trained.state.global_step == 8


@soak
def test_samples_and_tokens_of_the_user(callback, timed):
    def fails(batch):
        raise KeyError("no such")

    trainer(callback(samples=lambda batch: len(batch["labels"]) * 2, tokens=fails)).train()
    assert timed.column("num_samples") == [32] * 2 and timed.column("num_tokens") == [None] * 2
    (warning,) = timed.warnings
    assert "tokens" in warning


@soak
@pytest.mark.parametrize("broken", ["new_record", "LapClock.start", "LapClock.wait", "LapClock.stop", "num_samples"])
def test_whatever_fails_within_laptime_the_training_goes_on(broken, callback, timed, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("a bug")

    home = "transformers" if broken == "num_samples" else "timed_run"
    monkeypatch.setattr(f"laptime.hooks.{home}.{broken}", fails)
    trained = trainer(callback(), eval_strategy="steps", eval_steps=2)
    trained.train()
    assert trained.state.global_step == 8
    assert len(timed.warnings) == 1 and "a bug" in timed.warnings[0]


@soak
def test_a_training_that_fails_leaves_the_model_as_it_was(callback, timed):
    timer = callback()
    trained = trainer(timer)
    trained.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained.train()
    assert timed.record["status"] == "running"  # until the process ends: no callback is told of an error
    timer._at_exit()
    assert timed.record["status"] == "failed"
    timer._leave()


@soak
def test_a_resume_within_an_epoch_gives_a_partial_lap(callback, timed):
    trainer(save_strategy="steps", save_steps=2, num_train_epochs=1).train()
    trained = trainer(callback(), num_train_epochs=3)
    trained.train(resume_from_checkpoint="checkpoints/checkpoint-2")
    assert trained.state.global_step == 12
    assert timed.column("num_batches") == [2, 4, 4] and timed.column("is_warmup") == [True, True, False]
    assert "partial" in timed.lines[0]
