"""Finders of batch size and learning rate: on real MNIST, with real limits of memory."""

import re
import sys
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.settings import QUICK

import laptime
from laptime.machine import device as devices
from laptime.machine.device import Device, describe
from laptime.tune import batch_size
from laptime.tune.__main__ import main
from laptime.tune.batch_size import Trial, fast_enough, memory_budget, predicted_bytes

FEW = ["device=cpu", "dataset.limit=2000", "strategy.threads_per_rank=1"]
LIMITED = Path(processes.__file__).with_name("tune_with_memory_limit.py")


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    """Each batch size is tried for its least number of steps; no test looks at times."""
    monkeypatch.setattr(batch_size, "_TIMED_S", 0.0)


def trial(batch_size: int, memory_bytes: int | None = None, samples_per_s: float | None = 1.0) -> Trial:
    return Trial(batch_size, None if samples_per_s is None else 1.0, samples_per_s, memory_bytes)


def value_of(output: str, name: str) -> str:
    match = re.search(rf"^{name} +(.*)$", output, re.M)
    assert match is not None, output
    return match[1]


def test_batch_sizes_are_doubled_up_to_the_whole_training_set(work_folder, capsys):
    assert main(["batch_size", *FEW, "model=mlp"]) == 0
    printed = capsys.readouterr()
    tried = [int(size.replace(",", "")) for size in re.findall(r"^batch size ([\d,]+):", printed.err, re.M)]
    assert tried == [16, 32, 64, 128, 256, 512, 1024, 1600]  # a fifth of the 2,000 is for validation
    assert "laptime: batch sizes for mlp on mnist, cpu" in printed.out
    assert value_of(printed.out, "Largest").startswith("training.batch_size=1600 (the whole training set")
    fast = int(value_of(printed.out, "Fast").partition("=")[2].partition(",")[0])
    assert fast in tried
    sweep = rf"laptime -m {' '.join(FEW)} model=mlp training.batch_size=\d+,"
    assert re.match(sweep, value_of(printed.out, "Next"))
    assert list(work_folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by what /proc says")
@pytest.mark.soak
@pytest.mark.parametrize("overrides", [["training.num_microbatches=4"], []], ids=str)
def test_the_largest_batch_is_limited_by_real_memory(overrides, work_folder):
    sizes = ["model.hidden_sizes=[512,512]", "dataset.limit=60000", "strategy.threads_per_rank=1"]
    done = processes.run("160000000", "batch_size", "--limit", "1e5", *sizes, *overrides, script=LIMITED)
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stderr
    largest = int(value_of(done.stdout, "Largest").partition("=")[2].partition(" ")[0])
    failed = re.findall(r"^batch size ([\d,]+): out of memory", done.stderr, re.M)
    too_large = min(int(size.replace(",", "")) for size in failed)
    assert largest < too_large <= largest + max(1, largest // 8)
    assert f"({too_large} does not fit into memory" in done.stdout


@pytest.mark.soak
def test_a_batch_size_that_would_not_fit_is_not_tried(monkeypatch, work_folder, capsys):
    rss = batch_size.psutil.Process().memory_info().rss
    monkeypatch.setattr(batch_size, "available_memory_bytes", lambda: 400_000_000 + rss // 9)
    assert main(["batch_size", "device=cpu", "model=cnn", "dataset.limit=20000", "--limit", "1000"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"predicted to need \d+\.\d GB", printed.err), printed.err
    assert "out of memory" not in printed.err
    assert "training.batch_size=16000" not in printed.out


def test_time_ends_the_search(monkeypatch, work_folder, capsys):
    assert main(["batch_size", *FEW, "--limit", "0.000001"]) == 0
    assert value_of(capsys.readouterr().out, "Largest").startswith("training.batch_size=16 (larger ones would exceed")


def test_what_disturbed_the_times_is_said(monkeypatch, work_folder, capsys):
    monkeypatch.setattr("laptime.measure.latency.on_battery", lambda: True)
    assert main(["batch_size", *FEW, "--limit", "0.000001"]) == 0
    assert re.match(r"[BC]: .*the machine ran on battery$", value_of(capsys.readouterr().out, "Quality"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by what /proc says")
def test_tune_says_that_no_batch_size_fits(work_folder):
    sizes = ["model.hidden_sizes=[4000,4000]", "dataset.limit=500", "strategy.threads_per_rank=1"]
    done = processes.run("150000000", "batch_size", *sizes, script=LIMITED)
    assert done.returncode == 1
    assert "not even one sample at a time fits into memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.unit
def test_memory_is_predicted_from_the_two_largest():
    assert predicted_bytes([trial(16, 500)], 32) is None
    assert predicted_bytes([trial(16, 500), trial(32, 600), trial(64, 1000)], 128) == 1000 + 64 * 400 / 32
    assert predicted_bytes([trial(64, 1000), trial(32, 600)], 128) == 1800
    assert predicted_bytes([trial(32, 700), trial(64, 600)], 128) == 600  # noise


@pytest.mark.unit
def test_the_smallest_of_those_that_are_about_as_fast():
    trials = [trial(16, samples_per_s=100), trial(32, samples_per_s=960), trial(64, samples_per_s=1000)]
    assert fast_enough([*trials, trial(128, samples_per_s=None)]) == 32


@pytest.mark.unit
def test_budget_of_an_accelerator_is_its_memory_without_what_others_use(monkeypatch):
    device = Device("cuda", "cuda", "a GPU", 1, 10_000)
    monkeypatch.setattr(Device, "memory_use", lambda self: (0.5, 10_000, 1_000))
    assert memory_budget(device) == 5_400  # of 10,000 others use 4,000; a tenth is left free
    monkeypatch.setattr(Device, "memory_use", lambda self: (0.0, 0, 0))
    assert memory_budget(device) is None
    assert 0 < memory_budget(describe("cpu", "cpu")) < devices.psutil.virtual_memory().total


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_suggested_learning_rate_learns(optimizer, work_folder, capsys):
    overrides = [*FEW, f"optimizer={optimizer}", "seed=1"]
    assert main(["lr", *overrides, "--plot", "lr.png"]) == 0
    printed = capsys.readouterr()
    suggested = value_of(printed.out, "Suggested").partition("=")[2].partition(",")[0]
    assert 1e-5 < float(suggested) < 1
    assert value_of(printed.out, "Next") == f"laptime {' '.join(overrides)} optimizer.lr={suggested}"
    assert "falls fastest" in printed.out and "Finding best" not in printed.err
    assert Path("lr.png").read_bytes().startswith(b"\x89PNG") and len(list(work_folder.iterdir())) == 1
    record = laptime.run([*overrides, *QUICK, "training.epochs=3", f"optimizer.lr={suggested}"])
    assert record["result"]["test_accuracy"] > 0.6


def test_learning_rates_are_the_same_twice_and_with_all_that_changes_a_step(work_folder, capsys):
    overrides = [*FEW, "training.mixup_alpha=0.2", "training.label_smoothing=0.1", "training.num_microbatches=2",
             "training.gradient_clip_norm=1", "training.precision=bf16-mixed", "dataset.pipeline=workers",
             "dataset.num_workers=1", "training.batch_size=32"]  # fmt: skip
    outputs = []
    for _ in range(2):
        assert main(["lr", *overrides, "--steps", "20"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_a_test_that_ends_too_early_says_so(work_folder, capsys):
    assert main(["lr", *FEW, "optimizer=sgd", "--lowest", "1e30", "--highest", "1e31"]) == 1
    assert "Use a smaller --lowest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["batch_size", "training.batch_size=3"], "training.batch_size=3: is the value that tune finds"),
        (["lr", "optimizer.lr=3"], "optimizer.lr=3: is the value that tune finds"),
        (["lr", "--steps", "3"], "--steps 3: must be a whole number from 20"),
        (["lr", "--lowest", "1"], "--highest 1: must be a learning rate above --lowest"),
        (["lr", "--plot", "lr.txt"], "--plot lr.txt: must end in"),
        (["lr", "--plot", "nowhere/lr.png"], "--plot nowhere/lr.png: there is no folder"),
        (["batch_size", "--plot", "lr.png"], "--plot lr.png: only works with lr"),
        (["batch_size", "--limit", ""], "--limit : must be"),
        (["lr", "--steps", ""], "--steps : must be"),
        (["batch_size", "--steps", "30"], "--steps 30: only works with lr"),
        (["batch_size", "--lowest", "1e-6"], "--lowest 1e-6: only works with lr"),
        (["lr", "--limit", "30"], "--limit 30: only works with batch_size"),
        (["lr", "sweep.dry_run=true"], "sweep.dry_run=true: has no effect"),
        (["batch_size", "hydra.run.dir=x"], "hydra.run.dir=x: has no effect"),
        (["batch_size", "--limit", "soon"], "--limit soon: must be"),
        (["batch_size", "strategy.world_size=2"], "strategy.world_size=2: tune runs in one process"),
        (["batch_size", "model=nothing"], "model=nothing: no such option"),
        (["lr", "model=mlp,cnn"], "model=mlp,cnn"),
        (["batch_size", "device=cuda", "device.fallback=error"], "device=cuda: not available"),
    ],
)
def test_mistakes_are_one_line(arguments, words, work_folder, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and len(error.splitlines()) <= 2
    assert list(work_folder.iterdir()) == []
