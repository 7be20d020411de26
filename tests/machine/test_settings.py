"""Environment variables that change the timing: in force in every rank, recorded, graded, and compared."""

import contextlib
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from tests.support.configs import changed, composed
from tests.support.settings import NO_REPORT, TINY

import laptime
from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs
from laptime.config.identity import hashed_config
from laptime.errors import UserError
from laptime.machine import environment
from laptime.machine.environment import ineffective_variables, python_settings, settings, slowing_settings
from laptime.record.files import read_record
from laptime.record.hashes import config_hashes
from laptime.record.run_record import RunRecord
from laptime.runner import fresh_processes, launch, rank_plan
from laptime.sweeps import rerun_rules
from laptime.sweeps.earlier import EarlierRun

ONE_EPOCH = (*TINY, "training.epochs=1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATEN_CPU_CAPABILITY", "default"),
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("KMP_BLOCKTIME", "0"),
        ("MALLOC_ARENA_MAX", "1"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so"),
        ("TORCHINDUCTOR_MAX_AUTOTUNE", "1"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
        ("HSA_ENABLE_SDMA", "0"),
        ("PYTHONMALLOC", "malloc"),
    ],
)
def test_a_variable_that_a_library_reads_is_recorded_and_compared(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    recorded = environment.environment("a CPU", 1)
    assert recorded.variables[name] == recorded.settings[name] == value
    assert environment.settings_have_changed()


@pytest.mark.unit
@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_ID": "7", "NVIDIA_VISIBLE_DEVICES": "all"},
        {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        {"TORCHINDUCTOR_CACHE_DIR": "/tmp/x", "LD_LIBRARY_PATH": "/opt/lib", "PYTHONPATH": "src"},
        {"TORCHELASTIC_RUN_ID": "x", "KMP_INIT_AT_FORK": "FALSE", "GLOO_SOCKET_IFNAME": "lo"},
        {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"},  # torchrun sets it
        {"OMP_WAIT_POLICY": "", "HOME": "/root", "SECRET": "x"},
    ],
)
def test_paths_devices_and_numbers_of_threads_are_not_settings(variables):
    assert settings(variables) == {}


def test_a_secret_variable_is_masked(monkeypatch):
    monkeypatch.setenv("TORCH_HUB_ACCESS_TOKEN", "correct-horse-battery")
    assert "correct-horse" not in str(environment.environment("a CPU", 1))


@pytest.mark.unit
def test_settings_that_slow_torch_down():
    values = settings({"ATEN_CPU_CAPABILITY": "default", "CUDA_LAUNCH_BLOCKING": "1", "OMP_WAIT_POLICY": "passive"})
    assert slowing_settings(values) == ["ATEN_CPU_CAPABILITY=default", "CUDA_LAUNCH_BLOCKING=1"]
    assert slowing_settings({"CUDA_LAUNCH_BLOCKING": "0", "TORCHDYNAMO_DISABLE": "False"}) == []


@pytest.mark.unit
def test_new_settings_need_new_processes(monkeypatch):
    plain = changed(device={"name": "cpu"}, strategy={"world_size": 1})
    monkeypatch.setattr(fresh_processes, "_loaded_with", settings())
    assert rank_plan.trains_in_this_process(plain, None)
    before = fresh_processes.context().get_start_method()
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert not rank_plan.trains_in_this_process(plain, None)
    assert fresh_processes.context().get_start_method() == "spawn"
    monkeypatch.undo()
    assert fresh_processes.context().get_start_method() == before


def test_settings_that_differ_from_a_resumed_sweep_are_named():
    here = rerun_rules.current_environment()
    then = replace(here, settings={**here.settings, "KMP_BLOCKTIME": "0"}, code_hash=environment.code_hash({}))
    run = EarlierRun(0, Path(), RunRecord(environment=then), [])
    (changed,), _ = rerun_rules._changed_conditions(run, {})
    assert "KMP_BLOCKTIME" in changed
    run = EarlierRun(0, Path(), RunRecord(environment=replace(then, settings=None)), [])
    assert rerun_rules._changed_conditions(run, {})[0] == []


def test_variables_of_torchrun_in_an_earlier_sweep_are_no_difference():
    here = rerun_rules.current_environment()
    recorded = {**here.settings, "TORCHELASTIC_RUN_ID": "none", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    then = replace(here, settings=recorded, code_hash=environment.code_hash({}))
    run = EarlierRun(0, Path(), RunRecord(environment=then), [])
    assert rerun_rules._changed_conditions(run, {})[0] == []


@pytest.mark.unit
def test_new_settings_are_refused_under_torchrun(monkeypatch, work_folder):
    monkeypatch.setattr(launch.torchrun, "is_joined", lambda: True)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    with pytest.raises(UserError):
        launch.launch(changed(), work_folder, [])
    assert list(work_folder.iterdir()) == []


@pytest.mark.soak
def test_settings_made_by_hydra_take_effect_and_are_recorded_and_graded(monkeypatch):
    note = "+callbacks.note={_target_:write_environment.WriteVariable,name:LAPTIME_NOTED}"
    record = laptime.run([*ONE_EPOCH, note, "+hydra.job.env_set={ATEN_CPU_CAPABILITY:default,LAPTIME_NOTED:1}"])
    assert Path("noted0").read_text() == "1"
    assert record["environment"]["torch"]["cpu_capability"] == "DEFAULT"
    assert record["environment"]["settings"]["ATEN_CPU_CAPABILITY"] == "default"
    assert record["strategy"]["rank_pids"] != [os.getpid()]
    assert any("ATEN_CPU_CAPABILITY=default" in reason for reason in record["quality"]["reasons"])
    assert "ATEN_CPU_CAPABILITY" not in os.environ


@pytest.mark.soak
def test_any_variable_that_hydra_sets_reaches_every_rank(work_folder):
    note = "+callbacks.note={_target_:write_environment.WriteVariable,name:LAPTIME_NOTED}"
    laptime.run([*ONE_EPOCH, note, "+hydra.job.env_set.LAPTIME_NOTED=1", "strategy.world_size=2"])
    assert [Path(f"noted{rank}").read_text() for rank in range(2)] == ["1", "1"]


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_settings_made_by_hydra_take_effect_in_a_sweep(launcher, train):
    arguments = ["-m", *ONE_EPOCH, NO_REPORT, "seed=1,2", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    done = train(*arguments, "strategy.world_size=2", "+hydra.job.env_set.ATEN_CPU_CAPABILITY=default")
    assert done.returncode == 0, done.stderr
    for run in ("sweep/0", "sweep/1"):
        assert read_record(Path(run))["environment"]["torch"]["cpu_capability"] == "DEFAULT"


def test_a_number_of_threads_without_effect_is_reported_and_recorded(monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    record = laptime.run(ONE_EPOCH)
    assert capfd.readouterr().err.count("OMP_NUM_THREADS=7") == 1
    assert record["environment"]["variables"]["OMP_NUM_THREADS"] == "7"
    assert record["strategy"]["threads_per_rank"] == record["environment"]["torch"]["num_threads"] == 1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "2"}, []),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "4"}, ["OMP_NUM_THREADS=1", "MKL_NUM_THREADS=4"]),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, []),
        ({"OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "x"}, ["OMP_NUM_THREADS=3"]),
        ({"OMP_NUM_THREADS": ""}, []),
    ],
)
def test_variables_without_effect(variables, expected, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ineffective_variables(2) == expected


def test_a_run_whose_model_changes_the_threads_is_not_a_repeat(work_folder):
    try:
        changed = laptime.run([*ONE_EPOCH, "model._target_=write_environment.ChangesThreads"])
    finally:
        torch.set_num_threads(1)
    assert changed["environment"]["torch"]["num_threads"] == 3
    assert changed["quality"]["grade"] == "C"
    (group,) = group_runs(load_runs([work_folder])[0])
    assert group.conditions.settings.split()[-1] == "threads=3"


@pytest.mark.parametrize("name", ["torch.backends.mkldnn", "sys.setprofile", "tracemalloc"])
def test_settings_made_by_python_code_are_recorded_and_graded(name, work_folder):
    assert python_settings() == {}
    record = laptime.run(ONE_EPOCH)
    with contextlib.ExitStack() as stack:
        if name == "torch.backends.mkldnn":
            stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(False)
        elif name == "sys.setprofile":
            stack.callback(sys.setprofile, None)
            sys.setprofile(lambda *_: None)
        else:
            stack.callback(tracemalloc.stop)
            tracemalloc.start()
        other = laptime.run(ONE_EPOCH)
    assert name not in record["environment"]["settings"] and name in other["environment"]["settings"]
    assert other["quality"]["grade"] != "A" and any(name in reason for reason in other["quality"]["reasons"])


@pytest.mark.unit
def test_another_callback_named_progress_bar_makes_another_experiment():
    callbacks = composed().callbacks
    bars = [None, callbacks["progress_bar"], {"_target_": "own.Slow"}]
    configs = [changed(callbacks=callbacks | {"progress_bar": bar}) for bar in bars]
    first, second, third = (config_hashes(hashed_config(config, "cpu", 1, 1)) for config in configs)
    assert first == second and third[0] != first[0] and third[1] != first[1]
