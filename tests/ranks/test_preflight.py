"""Variables, launchers and settings of Hydra that would silently change the training are refused before a run."""

import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from tests.support.settings import TINY

import laptime
from laptime.errors import UserError
from laptime.ranks import preflight, torchrun

TORCHRUN = dict.fromkeys(torchrun._VARIABLES, "2") | {"RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture
def refused(call, work_folder, monkeypatch):
    """refused(*overrides, **variables): the command exits with code 2 and a short message, and writes nothing."""

    def run(*overrides: str, **variables: str) -> str:
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            done: SimpleNamespace = call(*TINY, *overrides)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
        assert list(work_folder.iterdir()) == []
        return str(done.stderr)

    return run


@pytest.mark.unit
@pytest.mark.parametrize(
    "variables",
    [
        {"PL_TRAINER_LIMIT_TRAIN_BATCHES": "0.5"},
        {"PL_TRAINER_MAX_STEPS": "3"},
        {"PL_TRAINER_NO_SUCH_ARGUMENT": "x"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
        {"LOCAL_RANK": "1", "WORLD_SIZE": "4"},
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_SIZE": "2"},
        {"JSM_NAMESPACE_SIZE": "8"},
        {"SUBMITIT_LOCAL_NTASKS": "2"},
    ],
)
def test_the_refused_variable_is_named(variables):
    with pytest.raises(UserError, match="|".join(variables)):
        preflight.check_environment(variables)


@pytest.mark.unit
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PL_GLOBAL_SEED": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "3", "TORCHELASTIC_RUN_ID": "x"},
        {"WORLD_SIZE": "8"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},
        {"LSB_DJOB_NUMPROC": "8", "PBS_NP": "8", "NSLOTS": "8"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_single_process_is_accepted_whatever_its_number_of_slots(variables):
    preflight.check_environment(variables)


@pytest.mark.unit
def test_srun_may_start_torchrun(monkeypatch):
    for name, value in (TORCHRUN | {"SLURM_STEP_NUM_TASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    preflight.check_environment()
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
    with pytest.raises(UserError, match="PL_TRAINER_LIMIT_TRAIN_BATCHES"):
        preflight.check_environment()


def test_every_command_refuses_such_variables(refused, monkeypatch, trained, capfd):
    run_dir = trained(*TINY, "training.epochs=1")
    assert "PL_TRAINER_MAX_TIME" in refused(PL_TRAINER_MAX_TIME="00:00:00:01")
    assert "OMPI_COMM_WORLD_SIZE=2" in refused("-m", "seed=1,2", OMPI_COMM_WORLD_SIZE="2")
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
    with pytest.raises(UserError, match="PL_TRAINER_LIMIT_TRAIN_BATCHES"):
        laptime.run([*TINY])
    from laptime.evaluation.main import main as evaluate
    from laptime.exporting.main import main as export
    from laptime.tune.__main__ import main as tune

    for command, arguments in ((tune, ["lr", *TINY]), (evaluate, [f"run={run_dir}"]), (export, [f"run={run_dir}"])):
        assert command(arguments) == 2
        assert "PL_TRAINER_LIMIT_TRAIN_BATCHES" in capfd.readouterr().err
    assert not (run_dir / "evaluation").exists() and not (run_dir / "export").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+hydra.job.env_set.PL_TRAINER_FAST_DEV_RUN=1", "PL_TRAINER_FAST_DEV_RUN"),
        ("+hydra.job.env_set={RANK:0,WORLD_SIZE:2}", "WORLD_SIZE=2"),
        ("hydra.job.env_copy=[LAPTIME_NO_SUCH_VARIABLE]", "LAPTIME_NO_SUCH_VARIABLE"),
    ],
)
def test_such_variables_are_refused_in_hydras_settings(override, named, refused):
    assert "LAPTIME_NO_SUCH_VARIABLE" not in os.environ
    assert named in refused(override)


@pytest.mark.parametrize("name", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_variables_that_switch_compiling_off_are_refused_with_training_compile(name, refused, monkeypatch, work_folder):
    assert name in refused("training.compile=true", **{name: "1"})
    assert name in refused("training.compile=true", f"+hydra.job.env_set.{name}='1'")
    with monkeypatch.context() as patched, pytest.raises(UserError, match=name):
        patched.setenv(name, "1")
        laptime.run([*TINY, "training.compile=true"])
    monkeypatch.setenv(name, "0")
    preflight.check(composed("training.compile=true"))
    monkeypatch.setenv(name, "1")
    preflight.check(composed("training.compile=false"))


def composed(override):
    return OmegaConf.merge(with_launcher(), OmegaConf.from_dotlist([override]))


def with_launcher(**settings):
    return OmegaConf.create({"hydra": {"job": {"env_set": {}, "env_copy": []}, "launcher": settings}})


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"nodes": 2}, "hydra.launcher.nodes"),
        ({"tasks_per_node": 2}, "hydra.launcher.tasks_per_node"),
        ({"nodes": "2-4"}, "hydra.launcher.nodes"),
        ({"additional_parameters": {"ntasks": 2}}, "hydra.launcher.additional_parameters.ntasks"),
        ({"additional_parameters": {"ntasks-per-node": 2}}, "hydra.launcher.additional_parameters.ntasks-per-node"),
        ({"srun_args": ["--ntasks=2"]}, "hydra.launcher.srun_args.--ntasks"),
        ({"srun_args": ["--exclusive", "-n", "2"]}, "hydra.launcher.srun_args.-n"),
        ({"srun_args": ["-N2"]}, "hydra.launcher.srun_args.-N"),
    ],
)
def test_a_launcher_that_starts_a_run_several_times_is_refused(settings, key):
    with pytest.raises(UserError) as error:
        preflight.check(with_launcher(**settings))
    assert str(error.value).startswith(f"{key}=")


@pytest.mark.unit
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 8, "additional_parameters": None, "srun_args": None},
        {"additional_parameters": {"exclusive": True, "mail-type": "END"}, "srun_args": ["--mpi=none", "-n1", "-v"]},
        {"n_jobs": 4},
    ],
)
def test_a_launcher_with_one_process_per_run_is_accepted(settings):
    preflight.check(with_launcher(**settings))


@pytest.mark.parametrize("launcher", ["submitit_slurm", "submitit_local"])
def test_submitit_on_two_nodes_is_refused(launcher, refused):
    arguments = ["-m", "seed=1,2", f"hydra/launcher={launcher}", "hydra.launcher.tasks_per_node=2"]
    assert "hydra.launcher.tasks_per_node=2" in refused(*arguments)
