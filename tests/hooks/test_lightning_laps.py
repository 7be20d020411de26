"""Laps of a Lightning Trainer, with a faked time: what is included, and what is excluded."""

import importlib

import pytest
import torch
from tests.hooks.tiny import CHECKPOINT_S, DATA_S, STEP_S, VALIDATION_S, Endless, loader
from torch.utils.data import DataLoader

BATCH_S = DATA_S + STEP_S


def test_laps_are_epochs(tiny, lap_timer, timed, now):
    tiny.fit(lap_timer(), now=now)
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3
    assert timed.column("data_wait_s") == [4 * DATA_S] * 3
    assert timed.column("num_samples") == [16] * 3 and timed.column("num_batches") == [4] * 3
    assert timed.column("epoch") == [0, 1, 2] and timed.column("is_warmup") == [True, False, False]
    record = timed.record
    assert record["status"] == "completed" and record["result"]["stop_reason"] == "epochs"
    assert record["lap"] | {"contents": ""} == {
        "unit": "epoch",
        "num_batches": None,
        "timer": "LapTimer",
        "contents": "",
    }
    timing = record["timing"]
    assert (timing["epoch_time_s"], timing["samples_per_s"], timing["batches_per_s"]) == (5.0, 3.2, 0.8)
    assert (timing["steps_per_s"], timing["tokens_per_s"], timing["warmup_epochs"]) == (0.8, None, 1)
    assert record["seed"] == 1 and timed.warnings == []
    assert [line.split("  ")[0] for line in timed.lines][:3] == ["lap 1/3", "lap 2/3", "lap 3/3"]
    assert "warm-up, not counted" in timed.lines[0] and "remaining" in timed.lines[0]
    assert not any("warm-up" in line or "remaining" in line for line in timed.lines[1:])


def test_loss_of_a_lap_is_the_mean_over_its_batches(tiny, lap_timer, timed):
    module = tiny.Classifier()
    tiny.fit(lap_timer(), module=module)
    means = [sum(module.losses[4 * lap : 4 * lap + 4]) / 4 for lap in range(3)]
    assert timed.column("train_loss") == pytest.approx(means)
    assert timed.column("lr") == [0.1] * 3
    assert timed.record["result"]["train_loss"] == pytest.approx(means[-1])


def test_accumulation_counts_batches_and_undoes_lightnings_division(tiny, lap_timer, timed, now):
    module = tiny.Classifier(now)
    tiny.fit(lap_timer(), module=module, num_batches=5, now=now, accumulate_grad_batches=2)
    assert timed.column("epoch_time_s") == [5 * BATCH_S] * 3 and timed.column("num_batches") == [5] * 3
    assert timed.column("train_loss")[0] == pytest.approx(sum(module.losses[:5]) / 5)
    record = timed.record
    assert record["timing"]["steps_per_s"] == 3 / (5 * BATCH_S)
    assert (record["batch"]["per_rank_batch_size"], record["batch"]["global_batch_size"]) == (8, 8)


@pytest.mark.parametrize("interval", [2, 0.5, 1.0, 3])
def test_validation_is_excluded_at_any_interval(interval, tiny, lap_timer, timed, now):
    tiny.fit(lap_timer(), now=now, num_val=2, val_check_interval=interval, num_sanity_val_steps=2)
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3
    within = 0.0 if interval == 1.0 else 2 * VALIDATION_S + 2 * DATA_S
    assert timed.column("apart_s") == [within] * 3
    assert timed.column("data_wait_s") == [4 * DATA_S] * 3
    assert all(value is not None for value in timed.column("val_loss"))


def test_checkpoints_are_excluded(tiny, lap_timer, timed, now):
    checkpoint = tiny.L.callbacks.ModelCheckpoint(dirpath="checkpoints", every_n_train_steps=1, save_top_k=-1)
    tiny.fit(lap_timer(), checkpoint, now=now, enable_checkpointing=True)
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3
    assert timed.column("apart_s") == [3 * CHECKPOINT_S] * 3  # the lap is over before the last one


def test_checkpoints_of_validations_during_an_epoch_are_excluded(tiny, lap_timer, timed, now):
    checkpoint = tiny.L.callbacks.ModelCheckpoint(dirpath="checkpoints", monitor="val_loss", save_top_k=-1)
    tiny.fit(lap_timer(), checkpoint, now=now, num_val=1, val_check_interval=2, enable_checkpointing=True)
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3
    assert timed.column("apart_s") == [VALIDATION_S + DATA_S + CHECKPOINT_S] * 3


def test_code_in_apart_is_excluded_from_the_lap(tiny, lap_timer, timed, now):
    timer = lap_timer()

    def at_step(step: int) -> None:
        with timer.apart():
            with timer.apart():
                now.s += 50
            now.s += 7

    tiny.fit(timer, module=tiny.Classifier(now, at_step=at_step), now=now)
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3 and timed.column("apart_s") == [4 * 57.0] * 3


@pytest.mark.parametrize(
    ("every", "laps"),
    [(2, 6), (3, 4), (4, 3), (6, 2), (5, 2), (12, 1), (1, 12)],
)
def test_laps_of_batches_continue_across_epochs(every, laps, tiny, lap_timer, timed, now):
    tiny.fit(lap_timer(every=every), now=now, num_val=1)
    assert timed.column("epoch_time_s") == [every * BATCH_S] * laps
    assert timed.column("num_batches") == [every] * laps and timed.column("num_samples") == [4 * every] * laps
    assert timed.column("epoch") == list(range(laps))
    assert timed.record["lap"]["unit"] == "batches" and timed.record["lap"]["num_batches"] == every
    assert timed.lines[0].startswith(f"lap 1/{laps}  ")


def test_an_endless_text_with_validation_every_few_batches(tiny, lap_timer, timed):
    data = DataLoader(Endless(), batch_size=4)
    tiny.fit(
        lap_timer(every=8, tokens=torch.Tensor.numel), module=tiny.Language(), data=data, num_val=1, max_steps=24,
        max_epochs=-1, val_check_interval=5, check_val_every_n_epoch=None,
    )  # fmt: skip
    assert timed.column("num_batches") == [8] * 3 and timed.column("num_tokens") == [8 * 24] * 3
    assert timed.column("is_warmup") == [True, False, False] and timed.column("val_loss") == [2.5] * 3
    assert timed.record["timing"]["tokens_per_s"] > 0 and timed.record["status"] == "completed"
    assert timed.warnings == [] and timed.lines[0].startswith("lap 1/3  ")


def test_epoch_cut_short_by_max_steps_has_no_row(tiny, lap_timer, timed):
    tiny.fit(lap_timer(), max_steps=10)
    assert timed.column("num_batches") == [4, 4]
    (warning,) = timed.warnings
    assert "epoch 3 ended before its last batch" in warning and "every=" in warning
    assert timed.record["status"] == "completed" and timed.record["result"]["stop_reason"] == "epochs"


def test_early_stopping_is_the_stop_reason(tiny, lap_timer, timed):
    stops = tiny.L.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    tiny.fit(lap_timer(), stops, num_val=1, max_epochs=9)
    assert len(timed.rows) == 2
    assert (timed.record["status"], timed.record["result"]["stop_reason"]) == ("completed", "early_stopping")


def test_a_callback_that_stops_within_an_epoch(tiny, lap_timer, timed):
    def at_step(step: int) -> None:
        module.trainer.should_stop = step == 5

    module = tiny.Classifier(at_step=at_step)
    tiny.fit(lap_timer(), module=module, max_epochs=9)
    assert timed.column("num_batches") == [4]
    assert (timed.record["status"], timed.record["result"]["stop_reason"]) == ("completed", "callback")


def test_a_gan_with_manual_optimization(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer(), module=tiny.Gan(), num_batches=12, max_epochs=2)
    assert trainer.global_step == 48 and timed.column("num_batches") == [12, 12]
    breakdown, missing = timed.record["breakdown"], timed.record["missing"]
    assert 5 <= breakdown["num_steps"] <= 12 - 3 and "breakdown" not in missing
    for part in ("data", "forward", "backward", "optimizer", "rest"):
        assert breakdown[f"{part}_s"] > 0, part
    assert timed.column("train_loss") == [None, None] and timed.record["timing"]["steps_per_s"] is None
    # The generator has two products, forward and weights. The critic has three passes, for two losses.
    assert timed.record["model"]["flops_per_batch"] > 0


def test_the_breakdown_of_automatic_optimization_adds_up(tiny, lap_timer, timed):
    tiny.fit(lap_timer(), num_batches=12, max_epochs=2, num_val=1, val_check_interval=4)
    breakdown = timed.record["breakdown"]
    parts = [breakdown[f"{part}_s"] for part in ("data", "host_to_device", "forward", "backward", "optimizer", "rest")]
    assert all(part > 0 for part in parts) and sum(parts) == pytest.approx(breakdown["step_s"])
    # Linear layers of 6x8 and 8x3 with 4 samples: forward and weights of both, inputs of the second.
    assert timed.record["model"]["flops_per_batch"] == 2 * 4 * (2 * 48 + 3 * 24)
    assert timed.record["model"]["flops_per_sample"] == 2 * (2 * 48 + 3 * 24)


def test_too_few_batches_for_a_breakdown_are_named_in_missing(tiny, lap_timer, timed):
    tiny.fit(lap_timer())
    assert timed.record["breakdown"]["step_s"] is None
    assert "at least 5 are needed" in timed.record["missing"]["breakdown"]


@pytest.mark.parametrize("settings", [{"warmup_laps": 0}, {"breakdown": False, "flops": False}])
def test_disabled_figures_are_null_and_named_in_missing(settings, tiny, lap_timer, timed):
    tiny.fit(lap_timer(**settings), num_batches=10, max_epochs=1)
    record = timed.record
    assert record["breakdown"]["step_s"] is None and record["model"]["flops_per_batch"] is None
    assert {"breakdown", "model.flops_per_batch", "peak"} <= set(record["missing"]) and timed.warnings == []
    assert timed.column("is_warmup") == [False]  # the only epoch counts


def test_several_warm_up_laps(tiny, lap_timer, timed):
    tiny.fit(lap_timer(warmup_laps=2))
    assert timed.column("is_warmup") == [True, True, False] and timed.record["timing"]["warmup_epochs"] == 2


def test_flops_argument_wins(tiny, lap_timer, timed):
    tiny.fit(lap_timer(flops=1e6))
    assert timed.record["model"]["flops_per_batch"] == 1e6


def test_samples_and_tokens_arguments_win(tiny, lap_timer, timed):
    tiny.fit(lap_timer(samples=lambda batch: 10 * len(batch[0]), tokens=lambda batch: batch[0].numel()))
    assert timed.column("num_samples") == [160] * 3 and timed.column("num_tokens") == [96] * 3


def test_several_dataloaders(tiny, lap_timer, timed):
    class Both(tiny.Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    data = {"a": loader(4), "b": loader(4, batch_size=4)}
    tiny.fit(lap_timer(), module=Both(), data=data)
    assert timed.column("num_samples") == [2 * 16] * 3
    (warning,) = timed.warnings
    assert "2 DataLoaders" in warning and "samples=" in warning


def test_accumulation_by_a_schedule(tiny, lap_timer, timed):
    module = tiny.Classifier()
    scheduler = tiny.L.callbacks.GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
    tiny.fit(lap_timer(), scheduler, module=module)
    means = [sum(module.losses[4 * lap : 4 * lap + 4]) / 4 for lap in range(3)]
    assert timed.column("train_loss") == pytest.approx(means)
    assert timed.record["timing"]["steps_per_s"] is None and timed.record["timing"]["batches_per_s"] > 0


def test_sanity_checks_and_tests_are_excluded(tiny, lap_timer, timed, now):
    module, trainer = tiny.Classifier(now), tiny.trainer(lap_timer())
    module.predict_step = lambda batch, batch_idx: batch[0]
    trainer.validate(module, loader(2, now), verbose=False)
    trainer.predict(module, loader(2, now))
    trainer.fit(module, loader(4, now), loader(1, now))
    trainer.validate(module, loader(2, now), verbose=False)
    trainer.predict(module, loader(2, now))
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3 and timed.column("apart_s") == [0.0] * 3
    assert timed.warnings == [] and timed.record["status"] == "completed"


def test_a_search_for_a_learning_rate_before_the_training(tiny, lap_timer, timed, now):
    module, trainer = tiny.Classifier(now), tiny.trainer(lap_timer())
    importlib.import_module(f"{tiny.L.__name__}.tuner").Tuner(trainer).lr_find(module, loader(4, now), num_training=6)
    trainer.fit(module, loader(4, now))
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3 and timed.warnings == []


@pytest.mark.soak
@pytest.mark.parametrize("persistent", [True, False])
def test_data_workers(persistent, tiny, lap_timer, timed):
    data = loader(4, shuffle=True, num_workers=1, persistent_workers=persistent)
    tiny.fit(lap_timer(), data=data)
    assert timed.column("num_samples") == [16] * 3 and timed.record["status"] == "completed"


@pytest.mark.parametrize(
    "settings", [{"limit_train_batches": 3}, {"limit_train_batches": 0.75}, {"overfit_batches": 3}]
)
def test_limited_batches(settings, tiny, lap_timer, timed, now):
    tiny.fit(lap_timer(), data=loader(4, now), now=now, **settings)
    assert timed.column("num_batches") == [3] * 3 and timed.column("epoch_time_s") == [3 * BATCH_S] * 3


def test_a_batch_that_is_skipped(tiny, lap_timer, timed):
    class Skips(tiny.Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    trainer = tiny.fit(lap_timer(), module=Skips())
    assert trainer.global_step == 12 or trainer.global_step == 9
    assert timed.column("num_batches") == [4] * 3 and timed.record["status"] == "completed"


def test_epoch_that_a_hook_cuts_short(tiny, lap_timer, timed):
    class Breaks(tiny.Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 and self.current_epoch == 1 else None

    tiny.fit(lap_timer(), module=Breaks())
    assert timed.column("epoch") == [0, 2] and timed.column("num_batches") == [4, 4]
    (warning,) = timed.warnings
    assert "epoch 2 ended before its last batch" in warning


def test_an_epoch_without_steps_is_not_counted(tiny, lap_timer, timed):
    """Stochastic weight averaging adds an epoch that updates the statistics of BatchNorm."""
    module = tiny.Classifier()
    module.net[1] = torch.nn.BatchNorm1d(8)
    tiny.fit(lap_timer(), tiny.L.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1), module=module)
    assert timed.column("is_warmup") == [True, False, False, True] and "partial, not counted" in timed.lines[3]


def resumed(tiny, timer, checkpoint: str, now, **settings):
    """Train, and resume from its checkpoint in a second run."""
    saves = tiny.L.callbacks.ModelCheckpoint(dirpath="checkpoints", every_n_train_steps=1, save_top_k=-1)
    tiny.fit(saves, now=now, max_epochs=1, enable_checkpointing=True)
    return tiny.fit(
        timer, tiny.L.callbacks.ModelCheckpoint(dirpath="others"), now=now, max_epochs=3, enable_checkpointing=True,
        ckpt_path=f"checkpoints/{checkpoint}.ckpt", **settings,
    )  # fmt: skip


def test_resuming_mid_epoch_gives_a_partial_lap_that_is_not_counted(tiny, lap_timer, timed, now):
    trainer = resumed(tiny, lap_timer(), "epoch=0-step=2", now)
    assert trainer.global_step == 12 and timed.record["status"] == "completed"
    assert timed.column("num_batches") == [2, 4, 4] and timed.column("epoch") == [0, 1, 2]
    assert timed.column("is_warmup") == [True, True, False]
    assert "partial, not counted" in timed.lines[0] and "warm-up" in timed.lines[1]
    assert timed.record["timing"]["epoch_time_s"] == 4 * BATCH_S


def test_a_resume_between_epochs_is_not_partial(tiny, lap_timer, timed, now):
    resumed(tiny, lap_timer(), "epoch=0-step=4", now)
    assert timed.column("num_batches") == [4, 4] and timed.column("epoch") == [1, 2]
    assert timed.column("is_warmup") == [True, False] and timed.warnings == []
    assert not any("partial" in line for line in timed.lines)


def test_resuming_continues_the_lap_numbers(tiny, lap_timer, timed, now):
    resumed(tiny, lap_timer(every=2), "epoch=0-step=2", now)
    assert timed.column("num_batches") == [2] * 5 and timed.column("epoch") == [1, 2, 3, 4, 5]


def test_a_test_after_the_training_is_noted(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer())
    trainer.test(trainer.lightning_module, loader(1), verbose=False)
    result = timed.record["result"]
    assert result["test_accuracy"] == 0.5 and result["test_loss"] > 0 and timed.record["status"] == "completed"


def test_each_lap_is_logged(tiny, lap_timer, timed):
    class Logger(tiny.L.loggers.logger.Logger):
        name, version = "noting", 0

        def __init__(self) -> None:
            super().__init__()
            self.logged: list[tuple[dict, int]] = []

        def log_metrics(self, metrics, step=None):
            if "time/lap_s" in metrics:
                self.logged.append((metrics, step))

        def log_hyperparams(self, params):
            pass

    logger = Logger()
    tiny.fit(lap_timer(), logger=logger)
    assert [metrics["time/lap_s"] for metrics, _ in logger.logged] == timed.column("epoch_time_s")
    assert [step for _, step in logger.logged] == [3, 7, 11]  # the steps of Lightning's own metrics
    assert [metrics["epoch"] for metrics, _ in logger.logged] == [0, 1, 2]
    assert {"time/apart_s", "time/data_wait_s", "throughput/samples_per_s", "cpu/percent"} <= set(logger.logged[0][0])
