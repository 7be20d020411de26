"""Analysis of runs that LapTimer wrote: which of them are repeats, and which groups are compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hooks.tiny import STEP_S, loader

import laptime
from laptime.analysis.analyze import analyze
from laptime.analysis.answer import answer
from laptime.analysis.load import load_runs


def hashes(folder: str) -> tuple[str, str]:
    record = json.loads(Path(folder, "run.json").read_text())
    return record["group_hash"], record["config_hash"]


def test_repeats_differ_only_in_their_seed(tiny, lap_timer):
    for seed in (1, 2):
        tiny.fit(lap_timer(dir=f"{seed}", seed=seed), seed=seed, num_batches=1, max_epochs=2)
    (group, config), (other_group, other_config) = hashes("1"), hashes("2")
    assert group == other_group and config != other_config


@pytest.mark.parametrize(
    "what", ["lr", "batch size", "width", "max_epochs", "accumulation", "optimizer", "class", "config"]
)
def test_different_settings_are_different_groups_without_hyperparameters(what, tiny, lap_timer, timed):
    """A module that doesn't call save_hyperparameters."""

    class Other(tiny.Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Same(tiny.Classifier):
        pass

    module = {"lr": tiny.Classifier(lr=0.2), "optimizer": Other(), "class": Same()}.get(what) or tiny.Classifier()
    if what == "width":
        module.net[0], module.net[3] = torch.nn.Linear(6, 9), torch.nn.Linear(9, 3)
    settings: dict[str, Any] = {
        "max_epochs": {"max_epochs": 3}, "accumulation": {"accumulate_grad_batches": 2},
        "batch size": {"data": loader(2, batch_size=8)},
    }.get(what, {})  # fmt: skip
    tiny.fit(lap_timer(dir="1"), **({"max_epochs": 2, "data": loader(2)}))
    config = {"a": 1} if what == "config" else None
    tiny.fit(lap_timer(dir="2", config=config), module=module, **({"max_epochs": 2, "data": loader(2)} | settings))
    assert hashes("1")[0] != hashes("2")[0]


def test_repeats_in_one_process_without_a_seed_are_not_duplicates(tiny, lap_timer):
    for name in "ab":
        tiny.fit(lap_timer(dir=f"runs/{name}", seed=None, config={"lr": 0.1}), num_batches=1, max_epochs=2)
    runs, skipped = load_runs([Path("runs")])
    assert len(runs) == 2 and not skipped
    shutil.copytree("runs/a", "runs/copy")
    runs, (copy,) = load_runs([Path("runs")])
    assert len(runs) == 2 and "a copy of" in copy.reason


def test_hyperparameters_of_module_and_data_are_settings(tiny, lap_timer, timed):
    class Data(tiny.L.LightningDataModule):
        def __init__(self, num: int) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return loader(self.hparams.num)

    class Module(tiny.Classifier):
        def __init__(self, size: int, activation=torch.nn.ReLU, net=None) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["net"])

    torch.manual_seed(1)
    tiny.trainer(lap_timer()).fit(Module(size=3), datamodule=Data(2))
    config = timed.record["config"]
    assert (
        config["model"]["size"] == 3
        and config["model"]["activation"].endswith(".ReLU")
        and config["dataset"]["num"] == 2
    )
    assert timed.record["dataset"]["name"] == "data" and timed.record["model"]["name"] == "module"
    assert timed.record["hashed_config"]["model.size"] == 3


def test_config_argument_wins_and_its_secrets_are_masked(tiny, lap_timer, timed):
    tiny.fit(lap_timer(config={"lr": 0.5, "api_key": "abcdef123456"}, name="mine", dataset="data"))
    record, text = timed.record, (timed.folder / "run.json").read_text()
    assert record["config"]["lr"] == 0.5 and "abcdef123456" not in text and "model" not in record["config"]
    assert (record["model"]["name"], record["dataset"]["name"]) == ("mine", "data")


def test_two_values_are_compared(tiny, lap_timer, now):
    """The steps of one value take twice as long, apart from the effect of the seed."""
    for lr, step_s in ((0.1, 1.0), (0.2, 2.0)):
        for seed in (1, 2, 3):

            def at_step(_: int, more: float = step_s * (1 + 0.01 * seed) - STEP_S) -> None:
                now.s += more

            module = tiny.Classifier(now, lr=lr, at_step=at_step)
            tiny.fit(lap_timer(dir=f"runs/{lr}/{seed}", seed=seed), module=module, seed=seed)
    runs, skipped = load_runs([Path("runs")])
    assert len(runs) == 6 and not skipped and all(run.remarks == () for run in runs)
    analysis = analyze([Path("runs")])
    (comparison,) = analysis.comparisons
    assert sorted(row.speedup for row in comparison.rows) in ([1.0, pytest.approx(2.0)], [pytest.approx(0.5), 1.0])
    assert all(row.mismatches == () for row in comparison.rows)
    said = answer(analysis)
    assert "optimizer.0.lr" in said and ("2.00 times" in said or "0.50 times" in said), said
    frame = laptime.load("runs").runs
    assert len(frame) == 6 and set(frame["samples_per_s"].round(6)) and frame["seed"].tolist().count(1) == 2
