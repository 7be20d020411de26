"""Every option of every group trains: an epoch on few images, after which it knows more than before."""

import itertools
import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import processes
from tests.support.settings import QUICK

import laptime
from laptime.config.composition import config_dir
from laptime.errors import UserError
from laptime.record.directory import numbered_runs
from laptime.record.files import read_epochs, read_record
from laptime.runner import fresh_processes, rank_plan

BENCHMARK = runpy.run_path(str(processes.ROOT / "benchmarks" / "options.py"))
# Groups that are swept, or whose one option is always in use, are in the tests of what they are for.
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in config_dir().glob("*/*.yaml")
    if path.parent.name not in ("callbacks", "experiment", "search", "hydra", "task")
    and len(list(path.parent.iterdir())) > 1
)
# Their batch norm's running statistics need more steps than a test can take: benchmarks/options.py trains them.
LARGE = {"model=efficientnet_b0", "model=timm", "model=torchvision"}
# models/test_every_model.py trains these, one by default and the others in the soak.
SLOW = {*LARGE, "model=resnet18"}
SWEEPS = {
    "batch_size_scaling": ["training.batch_size=16,32", "seed=1"],
    "device_benchmark": ["device=cpu", "dataset=mnist", "model=mlp", "seed=1"],
    "distributed_mlp": ["strategy.world_size=1,2", "seed=1"],
    "strong_scaling": ["strategy.world_size=1,2", "seed=1"],
    "weak_scaling": ["strategy.world_size=1,2", "seed=1"],
}
SINGLE = sorted({path.stem for path in config_dir().glob("experiment/*.yaml")} - {*SWEEPS, "none"})
FEW = ["training.epochs=1", "dataset.limit=700", "training.batch_size=8", "optimizer.lr=0.001"]
# What a run with a profiler leaves out, which would be disturbed by it.
PROFILED = {"breakdown", "peak"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds digits as Fashion-MNIST's and as CIFAR-10's files, to be given as dataset.root."""
    folder = tmp_path_factory.mktemp("files")
    BENCHMARK["write_data"](folder)
    return folder


def needed(options: list[str], files: Path) -> list[str]:
    """What some options need besides."""
    overrides = []
    if {"dataset=cifar10", "dataset=fashion_mnist", "experiment=cnn_cifar10"} & set(options):
        overrides += [f"dataset.root={files}", "dataset.verify=false"]
    if "strategy=ddp" in options:  # of which a Mac has one rank
        overrides.append("strategy.wrap_single_rank=true" if "device=mps" in options else "strategy.world_size=2")
    return overrides


def trained(*overrides: str) -> dict[str, Any]:
    """The record of a completed run, which has lowered the loss on the test set."""
    done = processes.run(*overrides, "+callbacks.own._target_=write_losses.WriteLosses", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    record = read_record(Path("run"))
    assert record["status"] == "completed"
    before, after = (json.loads(Path(f"loss_{when}_0.json").read_text()) for when in ("before", "after"))
    assert after < before and math.isfinite(before)
    epochs = read_epochs(Path("run"))
    assert len(epochs) == record["strategy"]["world_size"] * record["config"]["training"]["epochs"]
    assert (epochs["epoch_time_s"] > 0).all()
    return record


def covering(options: list[str]) -> list[list[str]]:
    """Few runs, each with an option of every group, that have each option at least once."""
    groups = [list(group) for _, group in itertools.groupby(options, key=lambda option: option.partition("=")[0])]
    return [[group[number % len(group)] for group in groups] for number in range(max(map(len, groups)))]


RUNS = covering(sorted(set(OPTIONS) - SLOW))


@pytest.mark.unit
def test_each_option_is_in_one_of_the_runs():
    assert {option for run in RUNS for option in run} == set(OPTIONS) - SLOW
    assert {option.partition("=")[0] for option in OPTIONS} == {
        "dataset", "device", "logger", "model", "optimizer", "profiler", "scheduler", "strategy",
    }  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("options", RUNS, ids=" ".join)
def test_options_of_all_groups_train_together(options, files, work_folder):
    """One by one, with what they measure, in the soak."""
    few = [*FEW, "dataset.limit=160"]  # what they learn is for the soak
    overrides = [*(override for override in QUICK if "logger" not in override), *few, *options, *needed(options, files)]
    record = trained(*overrides)
    left_out = {key.partition(".")[0] for key in BENCHMARK["missing"](record)}
    assert left_out == PROFILED, "which are switched off here"
    for option in options:
        group, _, name = option.partition("=")
        if group in ("dataset", "model"):
            assert record[group]["name"].split()[0] == name
    assert record["config"]["strategy"]["world_size"] == (2 if "strategy.world_size=2" in overrides else 1)


@pytest.mark.soak
@pytest.mark.parametrize("option", sorted(set(OPTIONS) - LARGE))
def test_option_trains_an_epoch(option, files, work_folder):
    record = trained(*FEW, option, *needed([option], files))
    assert record["result"]["test_accuracy"] > 2 / record["dataset"]["num_classes"]
    left_out = BENCHMARK["missing"](record)
    if option.startswith("profiler=") and option != "profiler=none":
        assert {key.partition(".")[0] for key in left_out} == PROFILED
    else:
        assert left_out == set()


@pytest.mark.soak
@pytest.mark.parametrize("experiment", SINGLE)
def test_experiment_trains_an_epoch(experiment, files, work_folder):
    overrides = [f"experiment={experiment}", *FEW]
    if experiment == "cnn_cifar10":
        overrides.append("training.epochs=4")
    record = trained(*overrides, *needed(overrides, files))
    assert record["result"]["test_accuracy"] > 0.2


@pytest.mark.soak
@pytest.mark.parametrize("experiment", SWEEPS)
def test_experiment_that_is_a_sweep_trains_an_epoch(experiment, work_folder):
    few = [override for override in FEW if not (experiment == "batch_size_scaling" and "batch_size" in override)]
    overrides = [*few, *SWEEPS[experiment], "measure.warmup_epochs=0", "hydra.sweep.dir=s"]
    done = processes.run(f"experiment={experiment}", *overrides)
    assert done.returncode == 0, done.stderr
    records = [read_record(path) for path in numbered_runs(Path("s")).values()]
    assert len(records) == max(1, math.prod(len(values.split(",")) for values in SWEEPS[experiment]))
    assert all(record["status"] == "completed" and record["result"]["test_accuracy"] > 0.2 for record in records)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_mnist_99_reaches_99_percent(work_folder):
    """On all of MNIST, as its name, its file and the README say."""
    done = processes.run("experiment=mnist_99", "hydra.run.dir=run", timeout=1000)
    assert done.returncode == 0, done.stderr
    record = read_record(Path("run"))
    assert record["dataset"]["num_test"] == 10_000
    assert record["result"]["test_accuracy"] >= 0.99


SMALL = ["dataset=synthetic", "dataset.shape=[1,8,8]"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["device=mps", "strategy.world_size=2"], "a Mac has one MPS device"),
        (["device=cuda", "strategy.world_size=4"], "2 cuda devices"),
        (["device=xpu", "strategy.world_size=4"], "2 xpu devices"),
        (["device=cpu", "strategy.backend=nccl", "strategy.world_size=2"], "needs CUDA devices"),
        (["device=cuda", "strategy.comm_hook=shared_memory", "strategy.world_size=2"], "works only with device=cpu"),
        (
            ["device=cpu", "strategy=single", "strategy.world_size=2"],
            "runs one plain process, so it can't be combined with strategy.world_size=2",
        ),
        (["device=cpu", "training.precision=16-mixed"], "not supported on the CPU"),
        (["device=cpu", "dataset=cifar10", "dataset.pipeline=mapped"], "files of cifar10 can't be mapped"),
        (["device=cpu", "dataset=synthetic", "dataset.shape=[4,8,8]", "dataset.pipeline=workers"], "uses PIL"),
        (["device=cpu", *SMALL, "model=vit", "model.patch_size=9"], "must divide both sides of 8 x 8 images"),
        (["device=cpu", *SMALL, "model=torchvision", "model.name=alexnet"], "doesn't support images of 8 x 8"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_the_reason(overrides, reason, monkeypatch, work_folder):
    accelerator = overrides[0].partition("=")[2]
    monkeypatch.setattr(fresh_processes, "preload", lambda: None)
    if accelerator != "cpu":
        monkeypatch.setattr(rank_plan, "available_accelerator", lambda: accelerator)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(UserError, match=re.escape(reason)) as refusal:
        laptime.run([*overrides, "logger=none"])
    assert "=" in str(refusal.value).partition(":")[0] and len(str(refusal.value).splitlines()) <= 2
    assert list(work_folder.iterdir()) == []
