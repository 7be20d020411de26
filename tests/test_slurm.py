"""Inside a SLURM job: its cores, its tasks, its signals. SLURM itself is not here; its environment is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from laptime import device, slurm
from laptime.errors import UserError
from laptime.record import read_epochs

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def test_cores_are_those_of_the_allocation(monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(device, "container_cores", lambda: None)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert device.usable_cores() == 6
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert device.usable_cores() == 2
    monkeypatch.delenv("SLURM_CPUS_ON_NODE")
    assert slurm.allocated_cores({}) is None


@pytest.mark.parametrize("value", ["", "many", "0", "-1"])
def test_nonsense_about_cores_is_no_limit(value):
    assert slurm.allocated_cores({"SLURM_CPUS_ON_NODE": value}) is None


def test_several_tasks_of_one_command_are_refused_with_what_to_do(train, work_folder):
    with pytest.raises(UserError, match=r"srun has started 4 tasks.*torchrun"):
        slurm.require_one_task({"SLURM_STEP_NUM_TASKS": "4"})
    for arguments in (["training.epochs=1"], ["-m", "seed=1,2"]):
        done = train(*arguments, SLURM_STEP_NUM_TASKS="4")
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert list(work_folder.iterdir()) == []


def test_a_run_inside_a_job_takes_its_cores_and_ignores_lightnings_idea_of_slurm(train, the_run):
    job = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "laps", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1",
        "SLURM_CPUS_ON_NODE": "1",
    }  # fmt: skip
    done = train("dataset.limit=1000", "training.epochs=1", "device=cpu", "strategy.world_size=2", **job)
    assert done.returncode == 0, done.stderr
    strategy = json.loads((the_run()[0] / "run.json").read_text())["strategy"]
    assert (strategy["threads_per_rank"], strategy["oversubscribed"]) == (1, True)


def test_the_documented_recipe_for_requeued_jobs_goes_on_from_the_last_checkpoint(work_folder):
    readme = (TRAIN.parent / "docs/ranks.md").read_text()
    recipe = readme[readme.index("    last=$(ls") : readme.index("torchrun itself knows SIGTERM")]
    recipe = recipe.strip().replace("python train.py", f"{sys.executable} {TRAIN} dataset.limit=1000 logger=none")
    (work_folder / "outputs" / "7" / "0").mkdir(parents=True)  # died before it had trained an epoch
    for restart, epochs in ((1, 1), (2, 3)):
        script = f'srun() {{ "$@"; }}; {recipe} training.epochs={epochs}'
        job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)}
        done = subprocess.run(["bash", "-c", script], env=os.environ | job, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert list(read_epochs(work_folder / "outputs/7/1")["epoch"]) == [0]
    assert list(read_epochs(work_folder / "outputs/7/2")["epoch"]) == [1, 2]
