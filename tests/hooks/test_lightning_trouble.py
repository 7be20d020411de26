"""Failures: a warning says what to do, the record says what happened, and the training continues."""

import json
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hooks.tiny import Endless, loader
from torch.utils.data import DataLoader, IterableDataset

from laptime.analysis.load import load_runs
from laptime.hooks import timed_run
from laptime.lap.flops import FlopCounter


class Unsized(IterableDataset):
    """Five batches of 4, without a length."""

    def __iter__(self):
        yield from loader(5, batch_size=None)


class Detections(torch.utils.data.Dataset):
    """Images, each with a different number of boxes."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index):
        return torch.ones(6), torch.zeros(index % 3 + 1, 4)


def boxes(samples):
    return torch.stack([x for x, _ in samples]), torch.zeros(len(samples), dtype=torch.int64), [y for _, y in samples]


def complete(trainer) -> bool:
    return trainer.state.finished and trainer.current_epoch == 3 and trainer.global_step == 12


# Invalid arguments and data.


def test_a_callback_given_twice(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer(), lap_timer(dir="other"))
    assert complete(trainer) and len(timed.rows) == 3 and not Path("other").exists()
    (warning,) = timed.warnings
    assert "has several LapTimers" in warning and "Remove the others" in warning and "continues" in warning


def test_every_larger_than_the_run(tiny, lap_timer, timed):
    assert complete(tiny.fit(lap_timer(every=13)))
    (warning,) = timed.warnings
    assert "every=13: the training has only 12 batches" in warning and "at most half" in warning
    assert timed.record["status"] == "completed" and timed.record["timing"]["epoch_time_s"] is None
    assert any("no lap was counted" in line for line in timed.lines)


def test_a_loader_of_unknown_length(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer(), data=DataLoader(Unsized(), batch_size=4))
    (warning,) = timed.warnings
    assert "DataLoader has no length" in warning and "every=" in warning
    assert trainer.global_step == 15 and timed.column("num_batches") == [5] * 3
    assert timed.column("is_warmup") == [True, False, False]


def test_an_endless_loader_without_every(tiny, lap_timer, timed):
    data = DataLoader(Endless(), batch_size=4)
    trainer = tiny.fit(lap_timer(), module=tiny.Language(), data=data, max_steps=5, max_epochs=-1)
    assert trainer.global_step == 5 and timed.record["status"] == "completed"
    assert "DataLoader has no length" in timed.warnings[0] and len(timed.warnings) <= 2


def test_batches_whose_samples_cannot_be_counted(tiny, lap_timer, timed):
    class Detector(tiny.Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    data = DataLoader(Detections(), batch_size=4, collate_fn=boxes)
    assert complete(tiny.fit(lap_timer(), module=Detector(), data=data))
    (warning,) = timed.warnings
    assert "samples_per_s" in warning and "Pass samples=" in warning
    assert timed.column("num_samples") == [None] * 3 and timed.record["timing"]["batches_per_s"] > 0
    assert "Pass samples=" in timed.record["missing"]["timing.samples_per_s"]


def test_a_trainer_that_is_used_twice(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer())
    first = (timed.folder / "run.json").read_bytes(), (timed.folder / "epochs.csv").read_bytes()
    trainer.fit_loop.max_epochs = 5
    trainer.fit(trainer.lightning_module, loader(4))
    assert trainer.global_step == 20
    (warning,) = timed.warnings
    assert "already timed a training" in warning and "new LapTimer" in warning
    assert first == ((timed.folder / "run.json").read_bytes(), (timed.folder / "epochs.csv").read_bytes())


def test_a_directory_that_cannot_be_written(tiny, lap_timer, timed):
    Path("file").write_text("")
    assert complete(tiny.fit(lap_timer(dir="file/run")))
    (warning,) = timed.warnings
    assert "file/run" in warning and "continues" in warning
    assert [line.split("  ")[0] for line in timed.lines[:3]] == ["lap 1/3", "lap 2/3", "lap 3/3"]
    assert not any("results in" in line for line in timed.lines)


def test_a_directory_that_has_a_run_already(tiny, lap_timer, timed):
    tiny.fit(lap_timer())
    first = (timed.folder / "run.json").read_bytes()
    assert complete(tiny.fit(lap_timer()))
    assert (timed.folder / "run.json").read_bytes() == first
    others = [path for path in Path().rglob("run.json") if path.parent != timed.folder]
    assert len(others) == 1 or any("run" in warning for warning in timed.warnings)


@pytest.mark.parametrize("what", ["samples", "tokens"])
@pytest.mark.parametrize("returns", [None, "four"])
def test_a_function_of_the_users_that_fails(what, returns, tiny, lap_timer, timed):
    def fails(batch):
        if returns is None:
            raise KeyError("input_ids")
        return returns

    assert complete(tiny.fit(lap_timer(**{what: fails})))
    (warning,) = timed.warnings
    assert what in warning and timed.column("num_batches") == [4] * 3
    assert timed.column(f"num_{what}") == [None] * 3
    assert timed.record["status"] == "completed"


def test_unknown_seed_gets_a_warning(tiny, lap_timer, timed, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert complete(tiny.fit(lap_timer(seed=None)))
    (warning,) = timed.warnings
    assert "seed" in warning and "seed_everything" in warning and timed.record["seed"] is None


def test_the_seed_of_seed_everything_is_known(tiny, lap_timer, timed, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    tiny.L.seed_everything(0)
    tiny.fit(lap_timer(seed=None))
    assert timed.record["seed"] == 0 and timed.warnings == []


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": -1}, {"warmup_laps": -1}])
def test_invalid_settings_are_refused_by_the_constructor(settings, lap_timer):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.*must be at least"):
        lap_timer(**settings)


# Unusual trainings.

TRAINERS = {
    "fast_dev_run": {"fast_dev_run": True},
    "barebones": {"barebones": True} | dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")),
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "anomalies": {"detect_anomaly": True},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
    "profiler": {"profiler": "advanced"},
    "nothing": {"limit_train_batches": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_settings_that_do_not_affect_laps(name, tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer(), num_batches=10, **TRAINERS[name])
    assert trainer.state.finished and timed.warnings == []
    if name == "nothing":
        assert not timed.folder.exists()
        return
    laps = 1 if name == "fast_dev_run" else 3
    assert timed.record["status"] == "completed" and len(timed.rows) == laps
    if laps == 3:
        assert timed.record["breakdown"]["step_s"] and timed.record["model"]["flops_per_batch"] == 1344


def test_nan_loss_and_batch_without_tensors(tiny, lap_timer, timed):
    class Batch:
        def __init__(self, samples):
            self.parts = torch.utils.data.default_collate(samples)

    class Module(tiny.Classifier):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch.parts, batch_idx) * float("nan"), "more": torch.ones(3)}

    timer = lap_timer(samples=lambda batch: len(batch.parts[0]))
    assert complete(tiny.fit(timer, module=Module(), data=loader(4, collate_fn=Batch)))
    assert [row["train_loss"] for row in timed.rows] == ["nan"] * 3 and "loss nan" in timed.lines[0]
    runs, skipped = load_runs([Path("run")])
    assert len(runs) == 1 and not skipped and timed.column("num_samples") == [16] * 3


# Failures inside the timer.


BROKEN = (
    "laptime.hooks.lightning.training_of",
    "laptime.hooks.timed_run.new_record",
    "laptime.hooks.batch_counter.num_samples",
    "laptime.hooks.timed_run.LapClock.start",
    "laptime.lap.clock.LapClock.pause",
    "laptime.lap.clock.LapClock.count",
    "laptime.lap.clock.LapClock.stop",
    "laptime.lap.clock.usage",
    "laptime.hooks.warmup.PhaseClock.enter",
    "laptime.hooks.warmup.FlopCounter.__init__",
    "laptime.hooks.timed_run.measure_peak",
    "laptime.hooks.update_record.assess",
    "laptime.hooks.timed_run.LapRecorder.add",
    "laptime.hooks.timed_run.lap_line",
    "laptime.hooks.lightning.scores_of",
    "laptime.hooks.timed_run.RunRecord.write",
    "laptime.hooks.warmup.typical",
    "laptime.hooks.timed_run.summary_lines",
    "laptime.hooks.timed_run.peak_rss_bytes",
    "laptime.hooks.timed_run.EnergyMeter",
    "laptime.hooks.lightning.describe_torch",
    "laptime.hooks.lightning._log_lap",
)


@pytest.mark.parametrize("broken", BROKEN)
def test_training_continues_when_the_timer_fails(broken, tiny, lap_timer, timed, monkeypatch):
    calls = []

    def fails(*_, **__):
        calls.append(1)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(broken, fails)
    timer = lap_timer(peak=True)
    trainer = tiny.fit(
        timer, num_batches=12, max_epochs=2, num_val=1, val_check_interval=5,
        logger=tiny.L.loggers.CSVLogger("logs"),
    )  # fmt: skip
    assert calls and trainer.state.finished and trainer.global_step == 24
    (warning,) = timed.warnings
    assert "a bug" in warning and "The training continues" in warning
    assert not {"start", "stop"} & set(vars(trainer.profiler))
    if (timed.folder / "run.json").exists():
        has_failed = timer.guard.is_off and not broken.endswith(
            "summary_lines"
        )  # it fails after the record is complete
        assert timed.record["status"] == ("failed" if has_failed else "completed")
        assert not has_failed or "a bug" in timed.record["error"]["message"]
    monkeypatch.undo()
    with FlopCounter() as counter:  # the failed counter has left no dispatch mode
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert counter.total == 16 and torch.utils._python_dispatch._get_current_dispatch_mode() is None


# Trainings that fail or are interrupted.


def failing(tiny, timer, error: BaseException):
    def at_step(step: int) -> None:
        if step == 6:
            raise error

    handler = signal.getsignal(signal.SIGINT)
    try:
        tiny.fit(timer, module=tiny.Classifier(at_step=at_step))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on


def test_failed_training_is_recorded_as_failed(tiny, lap_timer, timed):
    with pytest.raises(RuntimeError, match="out of luck"):
        failing(tiny, lap_timer(), RuntimeError("out of luck"))
    record = timed.record
    assert record["status"] == "failed" and record["ended_at"]
    error = record["error"]
    assert (error["type"], error["message"], error["epoch"], error["step"]) == ("RuntimeError", "out of luck", 1, 2)
    assert timed.column("num_batches") == [4] and timed.warnings == []


def test_interrupted_training_is_recorded_as_interrupted(tiny, lap_timer, timed):
    with pytest.raises(SystemExit):
        failing(tiny, lap_timer(), KeyboardInterrupt())
    assert timed.record["status"] == "interrupted" and timed.warnings == []


def test_a_test_that_fails_afterwards_leaves_the_training_completed(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer())
    with pytest.raises(ZeroDivisionError):
        trainer.lightning_module.test_step = lambda *_: 1 / 0
        trainer.test(trainer.lightning_module, loader(1), verbose=False)
    assert timed.record["status"] == "completed" and timed.record["error"] is None


def test_nested_training_is_not_timed(tiny, lap_timer, timed):
    """The timer continues with the outer training, and restores both Trainers."""
    timer = lap_timer()

    class Nested(tiny.L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                self.trainer = tiny.fit(timer, max_epochs=1)

    nested = Nested()
    trainer = tiny.fit(timer, nested)
    assert timed.column("num_batches") == [4] * 3 and timed.record["status"] == "completed" and timed.warnings == []
    for used in (trainer, nested.trainer):
        assert not {"start", "stop"} & set(vars(used.profiler)) and "run" not in vars(used.fit_loop.epoch_loop.val_loop)


def test_error_message_is_masked_and_may_be_missing(tiny, lap_timer, timed):
    def at_step(step: int) -> None:
        if step == 5:
            raise RuntimeError("https://me:hunter22@host refused api_key=abcdef123456")

    with pytest.raises(RuntimeError, match="hunter22"):
        tiny.fit(lap_timer(), module=tiny.Classifier(at_step=at_step))
    text = json.dumps(timed.record)
    assert timed.record["status"] == "failed" and "hunter22" not in text and "abcdef123456" not in text
    assert any(line.startswith("failed after 1 lap: the analysis excludes this run") for line in timed.lines)


def test_a_class_of_either_package_is_a_callback(tiny):
    """jsonargparse checks it with issubclass, for LightningCLI."""
    import laptime

    assert issubclass(laptime.LapTimer, tiny.L.Callback) and isinstance(laptime.LapTimer(), laptime.LapTimer)
    assert type(pickle.loads(pickle.dumps(laptime.LapTimer(every=3)))).__name__ == "LapTimer"
    with pytest.raises(AttributeError):
        laptime.NoSuchName  # noqa: B018


def test_record_is_not_written_after_every_short_lap(tiny, lap_timer, timed, monkeypatch):
    """Every lap is written to epochs.csv immediately; run.json only now and then, and at the end."""
    monkeypatch.setattr(timed_run.time, "monotonic", lambda: 1000.0)  # no time passes
    written = []
    monkeypatch.setattr(timed_run.TimedRun, "_write", lambda run: written.append(len(run.recorder.rows)))
    tiny.fit(lap_timer(every=1), max_epochs=5)
    assert len(timed.rows) == 20 and written[-1] == 20


def test_flops_are_scaled_to_the_mean_batch_size(tiny, lap_timer, timed):
    """Independent of the size of the batch whose FLOPs were counted."""
    sizes = [[0, 1, 2, 3], [4], [5, 6, 7, 8], [9, 10, 11]]
    data = loader(4).dataset
    tiny.fit(lap_timer(), data=DataLoader(data, batch_sampler=sizes))
    model = timed.record["model"]
    assert model["flops_per_batch"] == 3 * model["flops_per_sample"] > 0


def test_deleted_directory_loses_only_the_files(tiny, lap_timer, timed):
    """One warning for each file; every lap is printed."""

    class Removes(tiny.L.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                shutil.rmtree("run")

    assert complete(tiny.fit(lap_timer(), Removes()))
    assert [warning.partition(" is skipped")[0] for warning in timed.warnings] == [
        "laptime: epochs.csv", "laptime: run.json",
    ]  # fmt: skip
    assert [line.partition("  ")[0] for line in timed.lines[:3]] == ["lap 1/3", "lap 2/3", "lap 3/3"]
