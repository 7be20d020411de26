"""A key that had another name: typed, it is refused with its new one; runs, checkpoints and sweeps of then go on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.records import new_record, write_record
from tests.support.settings import NO_REPORT, TINY

import laptime
from laptime.analysis.load import load_runs
from laptime.evaluation.main import main as evaluate
from laptime.record.files import read_record
from laptime.record.hashes import config_hashes
from laptime.record.renamed import RENAMED, by_new_names, by_old_names, override_by_new_name
from laptime.training.checkpoints import IDENTITY

OLD, NEW = "training.accumulate_grad_batches", "training.num_microbatches"
TWO_PARTS = [*TINY, "training.epochs=2", f"{NEW}=2"]


def as_then(run: Path) -> None:
    """Give a run's files the old name of the key."""
    record = json.loads((run / "run.json").read_text())
    record["config"]["training"]["accumulate_grad_batches"] = record["config"]["training"].pop("num_microbatches")
    record["hashed_config"] = by_old_names(record["hashed_config"])
    (run / "run.json").write_text(json.dumps(record))
    for path in (run / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint[IDENTITY] = by_old_names(checkpoint[IDENTITY])
        torch.save(checkpoint, path)
    for path in [*run.rglob("overrides.yaml"), *run.parent.glob("multirun.yaml")]:
        path.write_text(path.read_text().replace(NEW, OLD).replace("num_microbatches", "accumulate_grad_batches"))


@pytest.fixture
def old_run(trained, work_folder) -> Path:
    shutil.copytree(trained(*TWO_PARTS), work_folder / "old")
    as_then(Path("old"))
    assert OLD in (work_folder / "old/run.json").read_text().replace('"accumulate_grad_batches"', OLD)
    return Path("old")


@pytest.mark.unit
@pytest.mark.parametrize("override", [f"{OLD}=2", f"+{OLD}=2"])
def test_the_old_key_is_refused_with_its_new_name(override, call):
    done = call(override)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {OLD}=2: ") and f"{NEW}=2" in done.stderr


@pytest.mark.parametrize(
    ("content", "key", "instead"),
    [
        ("training: {accumulate_grad_batches: 2}", OLD, NEW),
        ("training: {epoch: 2}", "training.epoch", "training.epochs"),
        ("training: {epochs: many}", "training.epochs", "whole number"),
        ("seeds: 2", "seeds", "seed?"),
        ("device: {names: cpu}", "device.names", "device.name?"),
    ],
)
def test_a_wrong_key_in_a_file_is_named_with_the_file(content, key, instead, call, work_folder):
    folder = work_folder / "own/experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    done = call("--config-dir", "own", "experiment=mine")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: experiment/mine.yaml: {key}") and instead in done.stderr


def test_an_old_run_is_compared_with_a_new_one(old_run, trained):
    shutil.copytree(trained(*TWO_PARTS[:-1], f"{NEW}=2", "seed=2"), "new")
    runs, skipped = load_runs([Path()])
    assert not skipped and len(runs) == 2
    assert {run.group_hash for run in runs} == {runs[0].group_hash}
    assert all(run.config[NEW] == 2 and OLD not in run.config for run in runs)


def test_an_old_run_goes_on_and_is_evaluated(old_run):
    record = laptime.run([*TINY, "training.epochs=3", f"{NEW}=2", f"training.checkpoint={old_run}"])
    assert record["status"] == "completed"
    assert evaluate([f"run={old_run}", "latency.batch_sizes=[]"]) == 0
    assert read_record(old_run)["config"]["training"]["num_microbatches"] == 2


def test_an_old_sweep_is_resumed(train, work_folder):
    sweep = ["-m", *TINY, NO_REPORT, "training.epochs=1", f"{NEW}=1,2", "hydra.sweep.dir=sweep"]
    assert train(*sweep).returncode == 0
    for number in "01":
        as_then(Path("sweep") / number)
    shutil.rmtree("sweep/1")
    done = train("sweep.resume=sweep", NO_REPORT)
    assert done.returncode == 0, done.stderr
    assert [read_record(Path("sweep") / n)["config"]["training"]["num_microbatches"] for n in "01"] == [1, 2]
    assert len(read_record(Path("sweep/0"))["attempts"]) == 1


@pytest.mark.unit
def test_keys_of_somebody_elses_training_stay(tmp_path):
    record = new_record() | {"config": {"training": {OLD.partition(".")[2]: 2}}, "hashed_config": {OLD: 2}}
    record["lap"]["timer"] = "LapTimer"
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.unit
def test_hashes_are_those_of_the_old_name():
    old = {"seed": 1, OLD: 2}
    assert config_hashes(old) == config_hashes(by_new_names(old)) != config_hashes({"seed": 1, OLD: 3})
    assert by_old_names(by_new_names(old)) == old
    assert len(set(RENAMED.values())) == len(RENAMED)


@pytest.mark.unit
@pytest.mark.parametrize("sign", ["", "+", "++", "~"])
def test_an_override_is_read_by_its_new_name(sign):
    assert override_by_new_name(f"{sign}{OLD}=1,2") == f"{sign}{NEW}=1,2"
    assert override_by_new_name(f"{sign}training.epochs=3") == f"{sign}training.epochs=3"
    assert override_by_new_name(f"{sign}x={OLD}=2") == f"{sign}x={OLD}=2"
