"""Every option of every group trains: an epoch on few images, after which it knows more than before."""

import json
import math
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import laptime
from laptime import launch
from laptime.cli import main
from laptime.compose import config_dir
from laptime.errors import UserError
from laptime.record import read_epochs, read_record
from laptime.run_dir import numbered_runs

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "options.py"))
# Groups that are swept, or whose one option is always in use, are in the tests of what they are for.
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in config_dir().glob("*/*.yaml")
    if path.parent.name not in ("experiment", "search", "hydra") and len(list(path.parent.iterdir())) > 1
)
# Their batch norm's running statistics need more steps than a test can take: benchmarks/options.py trains them.
LARGE = {"model=efficientnet_b0", "model=timm", "model=torchvision"}
SWEEPS = {
    "batch_size_scaling": ["training.batch_size=16,32", "seed=1"],
    "device_benchmark": ["device=cpu", "dataset=mnist", "model=mlp", "seed=1"],
    "distributed_mlp": ["strategy.world_size=1,2", "seed=1"],
    "strong_scaling": ["strategy.world_size=1,2", "seed=1"],
    "weak_scaling": ["strategy.world_size=1,2", "seed=1"],
}
SINGLE = sorted({path.stem for path in config_dir().glob("experiment/*.yaml")} - set(SWEEPS))
FEW = ["training.epochs=1", "dataset.limit=700", "training.batch_size=8", "optimizer.lr=0.001"]
NOTES_LOSSES = """
import json
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback


class Own(Callback):
    def on_fit_start(self, trainer, module):
        self.note(trainer, module, "before")

    def on_fit_end(self, trainer, module):
        self.note(trainer, module, "after")

    def note(self, trainer, module, when):
        loss, count = 0.0, 0
        was_training = module.network.training
        module.network.eval()
        with torch.no_grad():
            for images, labels in trainer.datamodule.test_dataloader():
                loss += float(F.cross_entropy(module.network(images).float(), labels, reduction="sum"))
                count += len(labels)
        module.network.train(was_training)
        with open(f"loss_{when}_{trainer.global_rank}.json", "w") as file:
            json.dump(loss / count, file)
"""
# What a run with a profiler leaves out, which would be disturbed by it.
PROFILED = {"breakdown", "peak"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder that holds digits as Fashion-MNIST's and as CIFAR-10's files, to be given as dataset.root."""
    folder = tmp_path_factory.mktemp("files")
    BENCHMARK["write_data"](folder)
    return folder


@pytest.fixture
def notes_losses(work_folder, monkeypatch):
    (work_folder / "odd.py").write_text(NOTES_LOSSES)
    monkeypatch.syspath_prepend(str(work_folder))
    monkeypatch.setenv("PYTHONPATH", str(work_folder), prepend=os.pathsep)
    sys.modules.pop("odd", None)
    yield "+callbacks.own._target_=odd.Own"
    sys.modules.pop("odd", None)  # other tests have modules of that name


@pytest.mark.slow
@pytest.mark.parametrize("option", sorted(set(OPTIONS) - LARGE))
def test_option_trains_an_epoch(option, notes_losses, files, work_folder):
    typed = [*FEW, notes_losses, option]
    if option in ("dataset=cifar10", "dataset=fashion_mnist"):
        typed += [f"dataset.root={files}", "dataset.verify=false"]
    if option == "strategy=ddp":
        typed.append("strategy.world_size=2")
    record = laptime.run(typed)
    assert record["status"] == "completed"
    assert record["result"]["test_accuracy"] > 2 / record["dataset"]["num_classes"]
    losses = [json.loads((work_folder / f"loss_{when}_0.json").read_text()) for when in ("before", "after")]
    assert losses[1] < losses[0] and math.isfinite(losses[0])
    left_out = BENCHMARK["missing"](record)
    if option.startswith("profiler=") and option != "profiler=none":
        assert {key.partition(".")[0] for key in left_out} == PROFILED
    else:
        assert left_out == set()
    epochs = read_epochs(Path(record["config"]["run_dir"]))
    assert len(epochs) == record["strategy"]["world_size"] and (epochs["epoch_time_s"] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SINGLE)
def test_experiment_trains_an_epoch(experiment, notes_losses, files):
    typed = [f"experiment={experiment}", *FEW, notes_losses]
    if experiment == "cnn_cifar10":
        typed += [f"dataset.root={files}", "dataset.verify=false", "training.epochs=4"]
    record = laptime.run(typed)
    assert record["status"] == "completed" and record["result"]["test_accuracy"] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SWEEPS)
def test_experiment_that_is_a_sweep_trains_an_epoch(experiment, work_folder):
    few = [each for each in FEW if not (experiment == "batch_size_scaling" and "batch_size" in each)]
    with pytest.raises(SystemExit) as end:
        main([f"experiment={experiment}", *few, *SWEEPS[experiment], "measure.warmup_epochs=0", "hydra.sweep.dir=s"])
    assert not end.value.code
    records = [read_record(path) for path in numbered_runs(Path("s")).values()]
    assert len(records) == max(1, math.prod(len(each.split(",")) for each in SWEEPS[experiment]))
    assert all(each["status"] == "completed" and each["result"]["test_accuracy"] > 0.2 for each in records)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["device=mps", "strategy.world_size=2"], "a Mac has one MPS device"),
        (["device=cuda", "strategy.world_size=4"], "there are 2 cuda devices"),
        (["device=xpu", "strategy.world_size=4"], "there are 2 xpu devices"),
        (["device=cpu", "strategy.backend=nccl", "strategy.world_size=2"], "needs CUDA devices"),
        (["device=cuda", "strategy.comm_hook=shared_memory", "strategy.world_size=2"], "not in memory that processes"),
        (["device=cpu", "strategy=single", "strategy.world_size=2"], "strategy"),
        (["device=cpu", "training.precision=16-mixed"], "float16 does not train on the CPU"),
        (["device=cpu", "dataset=cifar10", "dataset.pipeline=mapped"], "pipeline=mapped"),
        (["device=cpu", "dataset=synthetic", "dataset.shape=[4,8,8]", "dataset.pipeline=workers"], "goes through PIL"),
        (["device=cpu", "dataset=synthetic", "dataset.shape=[1,8,8]", "model=vit", "model.patch_size=9"], "patch_size"),
        (
            ["device=cpu", "dataset=synthetic", "dataset.shape=[1,8,8]", "model=torchvision", "model.name=alexnet"],
            "model",
        ),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_the_reason(typed, reason, monkeypatch, work_folder):
    accelerator = typed[0].partition("=")[2]
    if accelerator != "cpu":
        monkeypatch.setattr(launch, "available_accelerator", lambda: accelerator)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(UserError, match=re.escape(reason)) as refusal:
        laptime.run([*typed, "logger=none"])
    assert "=" in str(refusal.value).partition(":")[0] and len(str(refusal.value).splitlines()) <= 2
    assert list(work_folder.iterdir()) == []
