"""The settings that distinguish runs."""

import copy
import json
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from laptime.hooks.identity import (
    HydraJob,
    deep_merge,
    hydra_job,
    mask_secrets,
    optimizer_settings,
    plain,
    structure_of,
)

pytestmark = pytest.mark.unit

COMPOSED = """
seed: 7
task_name: train
tags: [dev]
train: true
test: false
ckpt_path: null
paths: {root_dir: "${oc.env:PROJECT_ROOT}", output_dir: "${hydra:runtime.output_dir}"}
extras: {print_config: true}
logger: {csv: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: "${paths.output_dir}"}}
trainer:
  _target_: lightning.pytorch.trainer.Trainer
  default_root_dir: ${paths.output_dir}
  max_epochs: 3
  accelerator: cpu
  devices: 2
  precision: 32
data: {_target_: my.Data, data_dir: "${paths.data_dir}", batch_size: "${oc.env:LAPTIME_TEST_BATCH,64}"}
model: {net: {size: 64}, lr: "${oc.env:LAPTIME_TEST_UNSET}"}
callbacks:
  laptime: {_target_: laptime.LapTimer, every: 3}
  early: {_target_: lightning.pytorch.callbacks.EarlyStopping}
sweep: ["${now:%H}", "${oc.env:LAPTIME_TEST_BATCH,1}"]
"""


@pytest.fixture
def job(work_folder, monkeypatch):
    """Returns start(text, output_subdir): the Hydra job with the output directory `out`."""

    def start(text: str | None, output_subdir: str | None = ".hydra") -> HydraJob | None:
        folder = Path("out").absolute()
        if text is not None:
            (folder / (output_subdir or ".hydra")).mkdir(parents=True)
            (folder / (output_subdir or ".hydra") / "config.yaml").write_text(text)
        hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(folder)), output_subdir=output_subdir)
        monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: hydra))
        return hydra_job()

    return start


def test_paths_and_output_settings_do_not_distinguish_runs(job, monkeypatch):
    monkeypatch.setenv("LAPTIME_TEST_BATCH", "32")
    composed = job(COMPOSED)
    assert composed is not None and composed.seed == 7 and composed.output_dir == Path("out").absolute()
    assert composed.settings == {
        "trainer": {"_target_": "lightning.pytorch.trainer.Trainer", "max_epochs": 3, "precision": 32},
        "data": {"_target_": "my.Data", "data_dir": "${paths.data_dir}", "batch_size": "32"},
        "model": {"net": {"size": 64}, "lr": "${oc.env:LAPTIME_TEST_UNSET}"},
        "callbacks": {"early": {"_target_": "lightning.pytorch.callbacks.EarlyStopping"}},
        "sweep": ["${now:%H}", "32"],
    }


@pytest.mark.parametrize(
    ("text", "seed"), [("seed: 0", 0), ("seed: null", None), ("seed: true", None), ("a: 1", None), ("seed: x", None)]
)
def test_the_seed(text, seed, job):
    composed = job(text)
    assert composed is not None and composed.seed == seed


def test_groups_that_are_called_train_or_test_are_settings(job):
    composed = job("train: {lr: 0.1}\ntest: {batch_size: 4}")
    assert composed is not None and composed.settings == {"train": {"lr": 0.1}, "test": {"batch_size": 4}}


def test_a_trainer_by_another_name(job):
    composed = job("fabric: {_target_: my.Trainer, devices: 2, callbacks: null, lr: 1}")
    assert composed is not None and composed.settings == {"fabric": {"_target_": "my.Trainer", "lr": 1}}


@pytest.mark.parametrize("text", [None, "- 1\n- 2", ""])
def test_a_job_without_a_configuration_that_can_be_read(text, job):
    composed = job(text)
    assert composed is not None and (composed.config is None or composed.config == {}) and composed.settings == {}


def test_hydra_may_write_its_files_elsewhere(job):
    composed = job("a: 1", ".conf")
    assert composed is not None and composed.config == {"a": 1}


def test_no_hydra_job(monkeypatch):
    GlobalHydra.instance().clear()
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert not HydraConfig.initialized() and hydra_job() is None
    monkeypatch.delitem(sys.modules, "hydra.core.hydra_config")
    assert hydra_job() is None and "hydra.core.hydra_config" not in sys.modules


def test_plain_values():
    value = {
        "number": 1, 2: True, "none": None, "tuple": (1, 2.5), "path": Path("a/b"), "class": torch.nn.Linear,
        "module": torch.nn.ReLU(), "function": len, "nested": OmegaConf.create({"a": [1]}), "dtype": torch.float32,
    }  # fmt: skip
    result = plain(value)
    assert result == {
        "number": 1, "2": True, "none": None, "tuple": [1, 2.5], "path": "a/b",
        "class": "torch.nn.modules.linear.Linear", "module": "ReLU()", "function": "builtins.len",
        "nested": {"a": [1]}, "dtype": "torch.float32",
    }  # fmt: skip


class Kind(Enum):
    FAST = 1
    SLOW = 2


class Named:
    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"<Named {self.size} at {hex(id(self))}>"


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.int64(1), np.int64(2)),
        (np.float64(0.1), np.float64(0.5)),
        (Kind.FAST, Kind.SLOW),
        (partial(torch.optim.Adam, lr=0.1), partial(torch.optim.Adam, lr=0.5)),
        ({1, 2}, {1, 3}),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
        (torch.tensor(1), torch.tensor(2)),
        (np.arange(3), np.arange(4)),
        (torch.float32, torch.float64),
        (torch.device("cpu"), torch.device("meta")),
        (OmegaConf.create([1, 2]), OmegaConf.create([64, 2])),
        (torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)),
        (lambda x: x + 1, lambda x: x + 2),
        (Named(1), Named(2)),
        (list(range(2000)), list(range(1, 2001))),
    ],
)
def test_different_values_have_different_strings(one, other):
    """Equal values have equal strings: these contain no memory address and no order of a set."""
    assert plain(one) != plain(other) and plain(one) == plain(copy.copy(one))
    assert "0x" not in json.dumps(plain(one)) and json.loads(json.dumps(plain([one]))) == [plain(one)]


def test_self_referencing_value_ends():
    value: dict = {}
    value["self"] = value
    assert json.dumps(plain(value)) and json.dumps(plain(nested(100)))


def test_groups_of_parameters_are_settings():
    weight = torch.zeros(1, requires_grad=True)
    one, other = (torch.optim.SGD([{"params": [weight], "lr": lr}], lr=0.5) for lr in (0.1, 0.5))
    assert optimizer_settings(one)["group_0"] == {"lr": 0.1} and "group_0" not in optimizer_settings(other)
    schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda epoch: 0.001)
    assert schedule and "group_0" not in optimizer_settings(other)


def test_networks_of_one_class_have_different_structures():
    one, other = torch.nn.Sequential(torch.nn.ReLU()), torch.nn.Sequential(torch.nn.GELU())
    assert structure_of(one) != structure_of(other) and structure_of(one) == structure_of(copy.deepcopy(one))


def test_environment_variables_are_resolved_except_secrets(job, monkeypatch):
    monkeypatch.setenv("LAPTIME_TEST_LR", "0.1")
    monkeypatch.setenv("LAPTIME_TEST_PASSWORD", "hunter22")
    composed = job(
        "lr: ${oc.decode:${oc.env:LAPTIME_TEST_LR}}\nname: pre-${oc.env:LAPTIME_TEST_LR}-${oc.env:NO_SUCH_ONE,x}\n"
        "db: ${oc.env:LAPTIME_TEST_PASSWORD}"
    )
    assert composed is not None and composed.settings == {"lr": "${oc.decode:0.1}", "name": "pre-0.1-x", "db": "***"}


def test_the_settings_of_an_optimizer():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5, momentum=0.9)
    settings = optimizer_settings(optimizer)
    assert (settings["_target_"], settings["lr"], settings["momentum"]) == ("SGD", 0.5, 0.9)
    assert optimizer_settings(object()) == {"_target_": "object"}


def test_merged_mappings():
    first = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {"g": 4}}
    both = deep_merge(first, {"b": {"c": 5, "d": {"h": 6}}, "f": 7, "i": {"j": 8}})
    assert both == {"a": 1, "b": {"c": 5, "d": {"e": 3, "h": 6}}, "f": 7, "i": {"j": 8}}
    assert first == {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {"g": 4}}


def test_secrets_are_masked():
    masked = mask_secrets({"lr": 0.1, "logger": {"api_key": "abcdef123456"}})
    assert masked["lr"] == 0.1 and "abcdef123456" not in str(masked)
