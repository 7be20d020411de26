"""Complete projects, run as commands: one like lightning-hydra-template, and DDP with Lightning's launchers."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tests.support import processes

PROJECTS = Path(__file__).with_name("projects")


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("run.json"))]


@pytest.fixture
def template(work_folder):
    shutil.copytree(PROJECTS / "template", "template", ignore=shutil.ignore_patterns("__pycache__"))
    return work_folder / "template"


@pytest.mark.soak
def test_a_sweep_of_a_template_project_is_compared(template):
    """Needs only `callbacks=laptime` and the analysis."""
    arguments = ["-m", "callbacks=laptime", "seed=1,2", "model.net.lin1_size=8,1024", "data.batch_size=16"]
    done = processes.run(*arguments, script="train.py", cwd=template)
    assert done.returncode == 0, done.stderr
    sweep = template / "logs/train/multiruns/sweep"
    runs = records(sweep)
    assert len(runs) == 4 and {run["status"] for run in runs} == {"completed"}
    assert Counter(run["seed"] for run in runs) == {1: 2, 2: 2}
    assert Counter(run["group_hash"] for run in runs).most_common(1)[0][1] == 2
    assert len({run["config_hash"] for run in runs}) == 4
    first = runs[0]
    assert first["config"]["model"]["net"]["lin1_size"] == 8 and first["result"]["test_accuracy"] is not None
    assert first["result"]["val_accuracy"] is not None and first["result"]["train_accuracy"] is not None
    assert first["breakdown"]["step_s"] and first["model"]["flops_per_batch"] == 16 * 2 * (2 * 36 * 8 + 3 * 8 * 2)
    assert Path(first["run_dir"]).name == "0" and (sweep / "0" / ".hydra" / "config.yaml").exists()
    assert "paths" not in first["config"] and "laptime" not in first["config"]["callbacks"]
    assert first["model"]["name"] == "noiselitmodule" and first["dataset"]["name"] == "noisedatamodule"
    compared = processes.run(str(sweep), module="laptime.analysis", cwd=template)
    assert compared.returncode == 0, compared.stderr
    assert "model.net.lin1_size" in compared.stdout and "1024" in compared.stdout and "times" in compared.stdout
    rows = json.loads((sweep / "summary" / "summary.json").read_text())["tables"]["runs"]
    assert len(rows) == 4


@pytest.mark.soak
def test_template_without_a_seed_gets_a_warning(template):
    done = processes.run("callbacks=laptime", script="train.py", cwd=template)
    assert done.returncode == 0, done.stderr
    assert "the seed of this run is unknown" in done.stdout + done.stderr
    (record,) = records(template)
    assert record["seed"] is None and record["status"] == "completed"


def check_two_ranks(done) -> None:
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        without, with_timer = json.loads(Path(f"losses_{rank}.json").read_text())
        assert len(without) == 30 and with_timer == without
    (record,) = records(Path())
    strategy, communication = record["strategy"], record["communication"]
    assert record["status"] == "completed" and strategy["world_size"] == 2 and strategy["backend"] == "gloo"
    assert len(set(strategy["rank_pids"])) == 2
    assert communication["bytes_per_step"] == 4 * (6 * 16 + 16 + 16 * 3 + 3)
    assert communication["num_all_reduces_per_step"] == 1 and 0 <= communication["share"] <= 1
    assert record["breakdown"]["communication_s"] is not None and record["breakdown"]["step_s"] > 0
    batch = record["batch"]
    assert (batch["per_rank_batch_size"], batch["global_batch_size"]) == (8, 16)
    with Path("run/epochs.csv").open() as file:
        rows = [(row["epoch"], row["rank"], row["num_batches"], row["num_samples"]) for row in csv.DictReader(file)]
    assert rows == [(str(lap), str(rank), "10", "80") for lap in range(3) for rank in range(2)]
    assert record["peak"]["mfu"] > 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("laptime: lap")]
    assert len(lines) == 3  # only rank 0 prints


@pytest.mark.soak
def test_two_processes_of_lightnings_launcher(work_folder):
    """The processes are forked, which saves imports."""
    done = processes.run("ddp_fork", script=PROJECTS / "ddp" / "train.py")
    check_two_ranks(done)


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_new_processes(strategy, work_folder):
    done = processes.run(strategy, script=PROJECTS / "ddp" / "train.py", real=True)
    check_two_ranks(done)
