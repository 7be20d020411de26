"""Inside a SLURM job: its cores, its tasks, its signals. SLURM itself is not here; its environment is."""

import os
import shlex
import subprocess

import pytest
from tests.support.processes import ROOT
from tests.support.settings import TINY

from laptime.machine import device, slurm
from laptime.record.files import read_epochs


@pytest.mark.unit
def test_usable_cores_are_those_of_the_allocation(monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(device, "container_cores", lambda: None)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert device.usable_cores() == 6
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert device.usable_cores() == 2
    monkeypatch.delenv("SLURM_CPUS_ON_NODE")
    assert slurm.allocated_cores({}) is None


@pytest.mark.unit
@pytest.mark.parametrize("value", ["", "many", "0", "-1"])
def test_a_damaged_number_of_cores_is_no_limit(value):
    assert slurm.allocated_cores({"SLURM_CPUS_ON_NODE": value}) is None


def test_a_run_in_a_job_uses_its_cores_and_not_lightnings_slurm_environment(train, the_run):
    job = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "laps", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1",
        "SLURM_CPUS_ON_NODE": "1",
    }  # fmt: skip
    overrides = [override for override in TINY if not override.startswith("strategy.threads")]
    done = train(*overrides, "training.epochs=1", "strategy.world_size=2", **job)
    assert done.returncode == 0, done.stderr
    strategy = the_run()[1]["strategy"]
    assert (strategy["threads_per_rank"], strategy["oversubscribed"]) == (1, True)


def test_lightnings_advice_to_use_srun_is_not_shown(train, work_folder):
    """Lightning gives it where srun exists, but Laptime refuses several srun tasks."""
    (srun := work_folder / "srun").touch()
    srun.chmod(0o755)
    path = f"{work_folder}{os.pathsep}{os.environ['PATH']}"
    for world_size in (1, 2):
        done = train(*TINY, "training.epochs=1", f"strategy.world_size={world_size}", PATH=path)
        assert done.returncode == 0 and "srun" not in done.stdout + done.stderr, done.stderr


def test_the_documented_recipe_for_requeued_jobs_resumes_from_the_last_checkpoint(train, work_folder):
    document = (ROOT / "docs/ranks.md").read_text()
    recipe = document[document.index("    last=$(ls") : document.index("torchrun itself knows SIGTERM")].strip()
    assert recipe.count("srun python train.py ") == 1
    (work_folder / "outputs" / "7" / "0").mkdir(parents=True)  # a run that died in its first epoch
    for restart, epochs in ((1, 1), (2, 3)):
        # The shell prints the command that srun would start, and the test starts it.
        job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)}
        script = 'srun() { printf "%q " "$@"; }\n' + recipe
        said = subprocess.run(
            ["bash", "-c", script], env=os.environ | job, capture_output=True, text=True, timeout=60, check=True
        )
        python, train_py, *arguments = shlex.split(said.stdout)
        assert (python, train_py) == ("python", "train.py")
        done = train(*TINY, *arguments, f"training.epochs={epochs}", **job)
        assert done.returncode == 0, done.stderr
    assert list(read_epochs(work_folder / "outputs/7/1")["epoch"]) == [0]
    assert list(read_epochs(work_folder / "outputs/7/2")["epoch"]) == [1, 2]
