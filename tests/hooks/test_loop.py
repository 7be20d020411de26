"""Laps of plain loops: with a loader, or step by step."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.hooks.tiny import DATA_S, STEP_S, loader
from tests.support import processes
from torch import nn
from torch.nn import functional as F

import laptime

optimizer_hooks = sys.modules["torch.optim.optimizer"]  # torch.optim.optimizer can't be imported by name
BATCH_S = DATA_S + STEP_S
QUIET = {"dir": "run", "config": {"lr": 0.1}, "seed": 1, "peak": False}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch, now=None) -> torch.Tensor:
    x, y = batch
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if now is not None:
        now.s += STEP_S
    return loss


def train(batches, epochs: int = 3, now=None, net=None, **notes) -> list[float]:
    net = net or network()
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.1), []
    for _ in range(epochs):
        for batch in batches:
            loss = step(net, optimizer, batch, now)
            losses.append(float(loss.detach()))
            if isinstance(batches, laptime.Laps):
                batches.note(loss=loss)
    return losses


def test_a_lap_is_a_pass(timed, now):
    with laptime.laps(loader(4, now), total=12, **QUIET) as laps:
        losses = train(laps, now=now)
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 3 and timed.column("data_wait_s") == [4 * DATA_S] * 3
    assert timed.column("num_samples") == [16] * 3 and timed.column("num_batches") == [4] * 3
    assert timed.column("is_warmup") == [True, False, False]
    assert timed.column("train_loss")[0] == pytest.approx(sum(losses[:4]) / 4)
    record = timed.record
    assert (record["status"], record["lap"]["timer"], record["lap"]["unit"]) == ("completed", "laps", "epoch")
    assert record["timing"]["samples_per_s"] == 16 / (4 * BATCH_S) and record["seed"] == 1
    assert "Pass model=" in record["missing"]["breakdown"] and timed.warnings == []
    assert "remaining" in timed.lines[0] and "warm-up" in timed.lines[0]


def test_with_a_model_phases_are_measured_and_nothing_changes(timed):
    plain = train(loader(12, shuffle=False))
    net = network()
    with laptime.laps(loader(12), model=net, **QUIET) as laps:
        assert train(laps, net=net) == plain
    breakdown = timed.record["breakdown"]
    parts = [breakdown[f"{part}_s"] for part in ("data", "forward", "backward", "optimizer", "rest")]
    assert all(part > 0 for part in parts) and 5 <= breakdown["num_steps"] <= 12 - 2
    assert sum(parts) == pytest.approx(breakdown["step_s"])
    assert timed.record["model"]["flops_per_batch"] == 2 * 4 * (2 * 48 + 3 * 24)
    assert timed.record["model"]["num_parameters"] == 83 and timed.record["device"]["used"] == "cpu"
    assert not net._forward_hooks and not net._forward_pre_hooks
    assert not optimizer_hooks._global_optimizer_pre_hooks | optimizer_hooks._global_optimizer_post_hooks


def test_a_hand_written_update_counts_as_the_backward_pass(timed):
    net = network()
    with laptime.laps(loader(12), model=net, **QUIET) as laps:
        for _ in range(2):
            for x, y in laps:
                F.cross_entropy(net(x), y).backward()
                time.sleep(0.005)  # the update
    breakdown = timed.record["breakdown"]
    assert breakdown["backward_s"] >= 0.005
    assert breakdown["optimizer_s"] is None and "breakdown.optimizer_s" in timed.record["missing"]
    assert any("backward and optimizer" in line for line in timed.lines)


@pytest.mark.unit
def test_unknown_arguments_are_refused_with_a_hint():
    with pytest.raises(TypeError, match=r"'lr'.*config="):
        laptime.laps([], lr=1)
    with pytest.raises(TypeError, match="warmup_laps"):
        laptime.laps([], warmup=1)


def test_a_single_lap_says_that_it_includes_the_warm_up(timed, now):
    with laptime.laps(loader(4, now), total=4, **QUIET) as laps:
        train(laps, epochs=1, now=now)
    assert any("one lap only: it includes the warm-up; no phases and no MFU" in line for line in timed.lines)


def test_the_random_state_is_the_users(timed):
    def after(batches) -> list[float]:
        torch.manual_seed(7)
        for _ in batches:
            torch.rand(1)
        return torch.rand(3).tolist()

    with laptime.laps(loader(4, shuffle=True), **QUIET) as laps:
        assert after(loader(4, shuffle=True)) == after(laps)


@pytest.mark.parametrize(("every", "laps"), [(2, 6), (5, 2), (4, 3), (12, 1)])
def test_laps_of_batches_continue_across_passes(every, laps, timed, now):
    with laptime.laps(loader(4, now), every=every, **QUIET) as batches:
        for _ in range(3):
            train(batches, epochs=1, now=now)
            now.s += 1000  # between the passes
    assert timed.column("epoch_time_s") == [every * BATCH_S] * laps
    assert timed.column("num_batches") == [every] * laps and timed.column("epoch") == list(range(laps))
    assert timed.record["lap"]["num_batches"] == every


def test_steps_without_a_loader(timed, now):
    with laptime.Laps(every=2, total=7, **QUIET) as timer:
        for number in range(7):
            now.s += STEP_S
            timer.step(samples=4, tokens=torch.tensor(9), loss=torch.tensor(float(number)))
    # The first call starts the clock.
    assert timed.column("epoch_time_s") == [2 * STEP_S] * 3
    assert timed.column("num_samples") == [8] * 3 and timed.column("num_tokens") == [18] * 3
    assert timed.column("train_loss") == [1.5, 3.5, 5.5]
    assert timed.record["timing"]["steps_per_s"] == 1.0 and timed.record["status"] == "completed"


def test_phases_of_steps_without_a_loader(timed):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    (batch,) = loader(1)
    with laptime.Laps(every=14, model=net, **QUIET) as timer:
        for _ in range(30):
            timer.step(4, loss=step(net, optimizer, batch))
    breakdown = timed.record["breakdown"]
    assert all(breakdown[f"{part}_s"] > 0 for part in ("forward", "backward", "optimizer", "rest"))
    assert timed.record["model"]["flops_per_batch"] == 2 * 4 * (2 * 48 + 3 * 24)


@pytest.mark.parametrize("where", ["during a pass", "between passes"])
def test_code_in_apart_is_excluded(where, timed, now):
    with laptime.laps(loader(4, now), **QUIET) as laps:
        for _ in range(2):
            for number, _ in enumerate(laps):
                now.s += STEP_S
                if where == "during a pass" and number == 1:
                    with laps.apart():
                        now.s += 100
            if where == "between passes":
                with laps.apart():
                    now.s += 100
    assert timed.column("epoch_time_s") == [4 * BATCH_S] * 2
    assert timed.column("apart_s") == [100.0 if where == "during a pass" else 0.0] * 2


def test_evaluation_in_apart_between_steps(timed, now):
    with laptime.Laps(every=3, **QUIET) as timer:
        timer.step(1)
        for _ in range(6):
            now.s += 1
            with timer.apart():
                now.s += 50
            timer.step(1)
    assert timed.column("epoch_time_s") == [3.0, 3.0] and timed.column("apart_s") == [150.0, 150.0]


def test_metrics_belong_to_the_last_lap(timed):
    laps = laptime.laps(loader(2), **QUIET)
    for epoch in range(3):
        for _ in laps:
            pass
        laps.note(val_loss=1.0 + epoch, val_accuracy=torch.tensor(0.25 * epoch), lr=0.5)
    laps.note(test_loss=7.0, test_accuracy=0.75)
    laps.close()
    laps.close()  # a second call does nothing
    assert timed.column("val_loss") == [1.0, 2.0, 3.0] and timed.column("val_accuracy") == [0.0, 0.25, 0.5]
    assert timed.column("lr") == [0.5] * 3
    result = timed.record["result"]
    assert (result["test_loss"], result["test_accuracy"], result["val_loss"]) == (7.0, 0.75, 3.0)


@pytest.mark.parametrize(
    ("noted", "words"), [({"f1": 0.5}, "must be one of loss, train_loss"), ({"val_loss": "x"}, "could not convert")]
)
def test_unknown_metric_gets_a_warning(noted, words, timed):
    laps = laptime.laps(loader(2), **QUIET)
    for _ in range(2):
        laps.note(**noted, val_accuracy=None)
    (warning,) = timed.warnings
    assert words in warning and f"note({next(iter(noted))}=...)" in warning


def test_flops_are_those_of_one_batch_if_a_pass_is_left_while_they_are_counted(timed):
    """The second warm-up batch is counted. If the loop breaks there, the batch has no end."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with laptime.laps(loader(4), every=6, model=net, **QUIET) as laps:
        for _ in range(8):
            for number, batch in enumerate(laps):
                step(net, optimizer, batch)
                if number == 1:
                    break
        assert _get_current_dispatch_mode() is None
    assert timed.record["model"]["flops_per_batch"] == 2 * 4 * (2 * 48 + 3 * 24)


def test_a_warm_up_lap_of_one_step_is_the_reason_for_no_mfu(timed):
    (batch,) = loader(1)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with laptime.Laps(every=1, model=net, **QUIET | {"peak": True}) as timer:
        for _ in range(3):
            timer.step(4, loss=step(net, optimizer, batch))
    missing = timed.record["missing"]
    assert "fewer than 2 steps" in missing["model.flops_per_batch"]
    assert missing["peak.mfu"] == missing["model.flops_per_batch"]


def test_pass_that_ends_early_is_not_counted(timed):
    laps = laptime.laps(loader(4), **QUIET)
    for number in range(3):
        for index, _ in enumerate(laps):
            if number == 1 and index == 1:
                break
    laps.close()
    assert timed.column("num_batches") == [4, 4]
    (warning,) = timed.warnings
    assert "a pass ended before its last batch" in warning and "every=" in warning


def test_an_error_in_the_loop_is_recorded(timed):
    with pytest.raises(RuntimeError, match="boom"), laptime.laps(loader(4), **QUIET) as laps:
        for number, _ in enumerate(laps):
            if number == 2:
                raise RuntimeError("boom")
    record = timed.record
    assert (record["status"], record["error"]["type"], record["error"]["message"]) == ("failed", "RuntimeError", "boom")
    assert timed.warnings == []


def test_an_interrupt_in_the_loop_is_recorded(timed):
    with pytest.raises(KeyboardInterrupt), laptime.laps(loader(4), **QUIET) as laps:
        for _ in laps:
            raise KeyboardInterrupt
    assert timed.record["status"] == "interrupted"


def test_attributes_of_the_loader_are_available():
    data = loader(4)
    laps = laptime.laps(data, **QUIET)
    assert len(laps) == 4 and laps.dataset is data.dataset and laps.batch_size == 4
    with pytest.raises(AttributeError, match="no_such"):
        _ = laps.no_such
    assert not Path("run").exists()  # nothing is written before the first pass


def test_any_iterable_is_a_loader(timed):
    with laptime.laps([torch.zeros(3, 2)] * 2, **QUIET) as laps:
        for _ in range(2):
            assert len(list(laps)) == 2
    assert timed.column("num_samples") == [6, 6]


def test_runs_without_settings_get_a_warning(timed):
    with laptime.laps(loader(2), **(QUIET | {"config": None})) as laps:
        list(laps)
    (warning,) = timed.warnings
    assert "can't be distinguished" in warning and "config=" in warning


def test_every_larger_than_the_run(timed):
    with laptime.laps(loader(4), every=9, total=8, **QUIET) as laps:
        assert len(list(laps)) == 4
    (warning,) = timed.warnings
    assert "every=9: the training has only 8 batches" in warning


def test_a_directory_that_cannot_be_written(timed):
    Path("file").write_text("")
    with laptime.laps(loader(2), **(QUIET | {"dir": "file/run"})) as laps:
        assert sum(1 for _ in range(2) for _ in laps) == 4
    (warning,) = timed.warnings
    assert "file/run" in warning and timed.lines[0].startswith("lap 1")


@pytest.mark.parametrize(
    "broken", ["new_record", "LapClock.start", "LapClock.begin_wait", "LapClock.count", "LapRecorder.add"]
)
def test_loop_continues_when_the_timer_fails(broken, timed, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("a bug")

    home = "warmup" if broken.startswith("PhaseClock") else "timed_run"
    monkeypatch.setattr(f"laptime.hooks.{home}.{broken}", fails)
    net = network()
    with laptime.laps(loader(12), model=net, **QUIET) as laps:
        assert train(laps, net=net) == train(loader(12))
    (warning,) = timed.warnings
    assert "a bug" in warning and not net._forward_hooks


def test_neither_a_loader_nor_every_is_refused():
    with pytest.raises(ValueError, match="every=None: must be set without a loader"):
        laptime.Laps()
    with pytest.raises(TypeError, match="Call step"):
        iter(laptime.Laps(every=2)).__next__()


SCRIPT = """
import sys, torch, laptime
laps = laptime.laps([torch.zeros(2, 3)] * 3, config={"lr": 1}, seed=1, dir="run", peak=False)
for epoch in range(3):
    for batch in laps:
        if epoch == 2:
            loaded = {"hydra", "matplotlib", "pandas", "lightning", "pytorch_lightning", "transformers"}
            raise RuntimeError(f"boom {loaded & set(sys.modules)}")
"""


def test_failed_script_is_recorded_as_failed(work_folder):
    """Without a `with`, the record is written when the process ends. No heavy package is imported."""
    Path("script.py").write_text(SCRIPT)
    done = processes.run(script="script.py", real=True)
    assert done.returncode == 1 and done.stderr.count("RuntimeError: boom") == 1
    record = json.loads(Path("run/run.json").read_text())
    assert (record["status"], record["error"]["message"]) == ("failed", "boom set()")
    assert len(Path("run/epochs.csv").read_text().splitlines()) == 3


def test_importing_laptime_loads_nothing_heavy():
    heavy = "hydra matplotlib pandas numpy torch lightning pytorch_lightning transformers"
    code = f"import sys, laptime\nraise SystemExit(', '.join(set({heavy!r}.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n", done.stderr
