"""evaluate.py on real runs: what it finds is what the run recorded, and what it can't trust it refuses."""

import csv
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import processes
from tests.support.records import new_record, write_record
from tests.support.settings import QUICK, TINY

from laptime.config import security
from laptime.evaluation.find_run import find_run
from laptime.evaluation.main import main
from laptime.evaluation.predict import predict
from laptime.evaluation.trained_run import open_run
from laptime.exporting.main import main as export
from laptime.machine.device import describe

ROOT = Path(__file__).resolve().parents[2]
NO_LATENCY = "latency.batch_sizes=[]"
FEW_CALLS = ["latency.num_calls=5", "latency.warmup_calls=1", "latency.batch_sizes=1,16"]
PLAIN = (*TINY, "training.epochs=2")
TWO_RANKS = (*TINY, "training.epochs=1", "strategy.world_size=2")
WITH_BATCH_NORM = tuple(override for override in TWO_RANKS if "hidden_sizes" not in override)
RUNS = {
    "mlp": PLAIN,
    "mnist": (*QUICK, "dataset.limit=1000", "training.epochs=1"),
    "cnn": (*TINY, "training.epochs=1", "model=cnn"),
    "two ranks, batches that don't divide": (*TWO_RANKS, "training.eval_batch_size=7"),
    "sharded": (*TWO_RANKS, "strategy.comm_hook=shared_memory"),
    "bf16": (*PLAIN, "training.precision=bf16-mixed", "training.matmul_precision=medium"),
    "workers": (*TINY, "training.epochs=1", "dataset.pipeline=workers", "dataset.num_workers=1"),
    "a class of two words": (*(text for text in PLAIN if "hidden" not in text), "model=logistic_regression"),
    "batch norm": (*WITH_BATCH_NORM, "model._target_=networks_to_export.WithBatchNorm", "~model.hidden_sizes",
                   "~model.dropout"),
}  # fmt: skip


def read_evaluation(run: Path) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads((run / "evaluation" / "evaluation.json").read_text())
    return evaluation


@pytest.fixture
def copy(trained, work_folder) -> Callable[..., Path]:
    """copy(*overrides): a copy of a trained run, in run/, that a test may spoil."""

    def copy_run(*overrides: str) -> Path:
        shutil.copytree(trained(*overrides), work_folder / "run")
        return work_folder / "run"

    return copy_run


@pytest.fixture
def run(copy) -> Path:
    return copy(*PLAIN)


@pytest.mark.parametrize("name", RUNS)
def test_accuracy_is_the_recorded_one(name, copy):
    run = copy(*RUNS[name])
    allowed = "security.allowed_targets=networks_to_export" if name == "batch norm" else "threads=null"
    assert main([f"run={run}", NO_LATENCY, allowed]) == 0
    record = json.loads((run / "run.json").read_text())
    evaluation = read_evaluation(run)
    assert evaluation["result"]["test_accuracy"] == record["result"]["test_accuracy"]
    assert evaluation["result"]["test_loss"] == pytest.approx(record["result"]["test_loss"], rel=1e-5)
    assert evaluation["recorded"]["is_equal"] is True
    assert evaluation["model"] == record["model"]["name"]
    assert evaluation["latency"]["batch_sizes"] == []


def _loss(run: Path, precision: str) -> float:
    """The test loss as torch itself computes it."""
    network, data = open_run(find_run(str(run), "last", [])).load(describe("cpu", "cpu"))
    enabled = precision == "bf16-mixed"
    return predict(network, data.test_batches(1), lambda: torch.autocast("cpu", torch.bfloat16, enabled=enabled)).loss


@pytest.mark.parametrize(("trained_in", "evaluated_in"), [("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")])
def test_another_precision_than_the_runs_is_the_one_that_is_used(trained_in, evaluated_in, copy):
    run = copy(*(PLAIN if trained_in == "32-true" else RUNS["bf16"]))
    assert main([f"run={run}", f"precision={evaluated_in}", NO_LATENCY]) == 0
    evaluation = read_evaluation(run)
    assert evaluation["precision"] == evaluated_in and evaluation["recorded"]["is_equal"] is None
    assert evaluation["result"]["test_loss"] == _loss(run, evaluated_in) != _loss(run, trained_in)


def test_a_device_that_is_absent_is_replaced_by_the_cpu(run):
    assert main([f"run={run}", "device=cuda", NO_LATENCY]) == 0
    assert read_evaluation(run)["device"] | {"name": ""} == {"requested": "cuda", "used": "cpu", "name": ""}
    assert read_evaluation(run)["recorded"]["is_equal"] is True


def test_compiling_is_refused_where_a_variable_switches_it_off(copy, monkeypatch):
    run = copy(*PLAIN)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert main([f"run={run}", "compile=true", NO_LATENCY]) == 2
    assert not list(run.rglob("evaluation.json"))


@pytest.mark.soak
@pytest.mark.parametrize("trained_compiled", [True, False])
def test_accuracy_is_the_recorded_one_compiled_or_not(trained_compiled, copy):
    run = copy(*PLAIN, f"training.compile={str(trained_compiled).lower()}")
    for compiled in ("null", "true", "false"):
        assert main([f"run={run}", f"compile={compiled}", NO_LATENCY]) == 0
        evaluation = read_evaluation(run)
        assert evaluation["compile"] is (trained_compiled if compiled == "null" else compiled == "true")
        # Compiled or not, a sum is taken in another order: the last bits differ.
        assert evaluation["result"]["test_loss"] == pytest.approx(evaluation["recorded"]["test_loss"], rel=1e-4)
        if evaluation["compile"] is trained_compiled:
            assert evaluation["recorded"]["is_equal"] is True


def test_matrix_and_table_agree_with_the_accuracy(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([f"run={run}", *FEW_CALLS]) == 0
    evaluation = read_evaluation(run)
    matrix = np.array(evaluation["confusion_matrix"])
    assert matrix.shape == (10, 10) and matrix.sum() == 60
    assert np.trace(matrix) / 60 == evaluation["result"]["test_accuracy"]
    assert [row["support"] for row in evaluation["per_class"]] == matrix.sum(axis=1).tolist()
    rows = list(csv.reader((run / "evaluation" / "confusion_matrix.csv").open()))
    assert rows[0] == ["true", *(f"predicted_{number}" for number in range(10))]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == matrix.tolist()
    assert (run / "evaluation" / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert [row["batch_size"] for row in evaluation["latency"]["batch_sizes"]] == [1, 16]
    assert all(row["num_calls"] == 5 and row["p99_s"] is None for row in evaluation["latency"]["batch_sizes"])
    printed = capsys.readouterr().out
    assert ", equal" in printed and "Confusion matrix" in printed and "Timed: one forward pass" in printed


@pytest.mark.parametrize("name", ["best", "previous"])
def test_another_checkpoint_is_not_compared_with_the_record(name, run):
    assert main([f"run={run}", f"checkpoint={name}", NO_LATENCY]) == 0
    assert read_evaluation(run)["recorded"]["is_equal"] is None
    assert read_evaluation(run)["checkpoint"]["path"].endswith(f"{name}.ckpt")


@pytest.mark.parametrize("how", ["latest", "a file in it", "its run.json"])
def test_ways_to_name_a_run(how, run, work_folder):
    if how == "latest":
        (work_folder / "outputs").mkdir()
        run = run.rename(work_folder / "outputs" / "a, b = c's")
    named = {"latest": "latest", "a file in it": run / "checkpoints" / "last.ckpt", "its run.json": run / "run.json"}
    assert main([f"run={named[how]}", NO_LATENCY]) == 0
    assert read_evaluation(run)["recorded"]["is_equal"] is True


def test_a_path_with_any_characters_is_taken_as_typed(run, work_folder):
    odd = run.rename(work_folder / "a, b = c's (1)")
    assert main([f"run={odd}", NO_LATENCY]) == 0
    assert read_evaluation(odd)["recorded"]["is_equal"] is True


MISTAKES = {
    "": "run: has no value",
    "run=nowhere": "there is no such directory",
    "run=latest": "no run in outputs/ or multirun/",
    "run=run checkpoint=frist": "The run has last, best, previous.",
    "run=run chekpoint=best": "Did you mean checkpoint?",
    "run=run device=tpu": "must be one of auto, cpu",
    "run=run precision=16-mixed": "not supported on the CPU",
    "run=run precision=half": "must be one of 32-true",
    "run=run latency.batch_sizes=0": "must be at least 1",
    "run=run latency.batch_sizes=1,1": "must not contain a size twice",
    "run=run latency.batch_sizes=many": "must be a whole number",
    "run=run latency.num_calls=0": "must be at least 1",
    "run=run threads=0": "must be at least 1",
    "run=run threads=5000": "must be at most 1024",
    "run=run dataset.root=nowhere dataset.rot=x": "unknown key",
    "run=run compile=perhaps": "must be true or false",
    "run=run/run.json/x": "there is no such directory",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_get_a_line_or_two_and_leave_nothing(arguments, trained, capsys):
    run = trained(*PLAIN)
    (Path.cwd() / "run").symlink_to(run)
    assert main(arguments.split()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and len(errors.splitlines()) <= 2
    assert MISTAKES[arguments] in errors
    assert not (run / "evaluation").exists()


def spoil_record(run: Path, change) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT = {
    "half a checkpoint": (lambda run: truncate(run / "checkpoints" / "last.ckpt"), "is damaged"),
    "no checkpoint": (lambda run: (run / "checkpoints" / "last.ckpt").unlink(), "The run has best, previous."),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "The run has no checkpoint."),
    "a checkpoint that is none": (
        lambda run: torch.save({"a": 1}, run / "checkpoints" / "last.ckpt"), "was not written by Laptime",
    ),
    "half a record": (lambda run: truncate(run / "run.json"), "not JSON"),
    "an empty record": (lambda run: (run / "run.json").write_text("{}"), "schema version"),
    "no configuration": (lambda run: spoil_record(run, lambda r: r.update(config=None)), "run.json is damaged"),
    "no result": (lambda run: spoil_record(run, lambda r: r.update(result=3)), "damaged: result is 3"),
    "no batch size": (
        lambda run: spoil_record(run, lambda r: r["config"]["training"].update(eval_batch_size="x")), "is damaged",
    ),
    "another model": (
        lambda run: spoil_record(run, lambda r: r["config"]["model"].update(hidden_sizes=[8])), "was not saved by",
    ),
    "another seed": (lambda run: spoil_record(run, lambda r: r["config"].update(seed=7)), "seed is 1 in the"),
}  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("command", [main, export])
def test_a_training_that_laptime_timed_alone_is_refused(command, work_folder, capsys):
    record = new_record() | {"status": "completed", "config": {"training": "mine"}}
    record["lap"]["timer"] = "LapTimer"
    Path("run").mkdir()
    write_record(Path("run"), record)
    assert command(["run=run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run=run: LapTimer only timed this training")


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_run_is_refused(how, run, capsys):
    spoil, words = SPOILT[how]
    spoil(run)
    assert main([f"run={run}", NO_LATENCY]) == 2
    errors = capsys.readouterr().err
    assert words in errors and len(errors.splitlines()) <= 2
    assert not (run / "evaluation").exists()


def test_a_checkpoint_with_other_weights_is_refused(run, capsys):
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(3, 3)
    torch.save(content, path)
    assert main([f"run={run}", NO_LATENCY]) == 2
    assert "don't fit the run's model" in capsys.readouterr().err


def test_a_checkpoint_outside_of_a_run_needs_its_run(run, work_folder, capsys):
    shutil.move(run / "checkpoints" / "last.ckpt", work_folder / "mine.ckpt")
    assert main(["run=mine.ckpt", NO_LATENCY]) == 2
    assert "run=DIR checkpoint=mine.ckpt" in capsys.readouterr().err
    assert main([f"run={run}", "checkpoint=mine.ckpt", NO_LATENCY]) == 0


@pytest.mark.parametrize("group", ["model", "dataset"])
@pytest.mark.parametrize("target", ["tell_tale.Net", "os.system", "torch.hub.load"])
def test_what_a_record_names_is_imported_only_if_it_was_typed(group, target, run, work_folder, capsys, monkeypatch):
    monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ())
    (work_folder / "tell_tale.py").write_text("open('imported', 'w')\n\n\nclass Net:\n    pass\n")

    def change(record):
        record["config"][group] = {"_target_": target}
        record["config"]["security"]["allowed_targets"] = ["tell_tale", "os", "torch.hub"]

    spoil_record(run, change)
    assert main([f"run={run}", NO_LATENCY]) == 2
    errors = capsys.readouterr().err
    assert f"{group}._target_={target}: is not on the allow-list" in errors and len(errors.splitlines()) == 1
    assert not (work_folder / "imported").exists() and not (run / "evaluation").exists()


def test_a_checkpoint_never_runs_code(run, work_folder, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (work_folder / "ran",))

    torch.save({"laptime": {}, "loops": Evil(), "state_dict": {}}, run / "checkpoints" / "last.ckpt")
    assert main([f"run={run}", NO_LATENCY]) == 2
    assert "holds more than tensors and plain values" in capsys.readouterr().err
    assert not (work_folder / "ran").exists()


def test_a_result_that_cannot_be_written_leaves_nothing(run):
    # The table fits; the picture is larger than a file may be.
    limits = {resource.RLIMIT_FSIZE: 4096}
    done = processes.run(f"run={run}", NO_LATENCY, script=ROOT / "evaluate.py", limits=limits)
    assert done.returncode == 1 and "File too large" in done.stderr and "confusion_matrix.png" in done.stderr
    assert not (run / "evaluation").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_help_loads_no_torch_and_names_every_key(command):
    arguments = [sys.executable, "-X", "importtime", str(ROOT / f"{command}.py"), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=processes.DEADLINE_S)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and "torch" not in imported
    for key in ("run:", "checkpoint:", "latency:", "allowed_targets:", f"{command}.py run=latest"):
        assert key in done.stdout
    keys = done.stdout[done.stdout.index("keys and their defaults:") : done.stdout.index("options:")]
    assert keys in processes.run("--help", module=f"laptime.{command}").stdout
