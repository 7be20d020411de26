"""Overrides without effect are refused before anything is written; overrides that repeat the default pass."""

import pytest
from tests.support.settings import NO_REPORT, TINY

SWEEP = ["-m", "seed=1,2"]


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (["sweep.on_failure=stop"], "-m"),
        (["hydra/launcher=joblib"], "-m"),
        (["hydra/sweeper=optuna"], "-m"),
        (["hydra.sweep.dir=x"], "-m"),
        (["measure.max_repeats=3"], "measure.target_interval"),
        ([*SWEEP, "measure.max_repeats=3"], "measure.target_interval"),
        ([*SWEEP, "hydra.run.dir=x"], "hydra.sweep.dir"),
        (["strategy.comm_hook=fp16"], "strategy.wrap_single_rank=true"),
        ([*SWEEP, "strategy.comm_hook=none,fp16"], "strategy.world_size=2"),
        (["strategy.bucket_cap_mb=3"], "strategy.wrap_single_rank=true"),
        (["strategy.master_port=29500"], "strategy.wrap_single_rank=true"),
        (["training.cudnn_benchmark=true"], "CUDA"),
        (["device.fallback=error"], "device=accelerator"),
        (["dataset.num_workers=3"], "dataset.pipeline=workers"),
        (["measure.sample_interval_s=null", "measure.memory_warning=0.5"], "measure.sample_interval_s"),
        (["run_label=mine"], "hydra.run.dir"),
        (["optimized_metric=test_loss"], "-m"),
        (["hydra.verbose=true"], "logging"),
        ([*SWEEP, "hydra/job_logging=default"], "logging"),
        (["dataset.verify=false"], "dataset=synthetic"),
        (["dataset.val_fraction=0", "callbacks.checkpoint.save_best=false"], "dataset.val_fraction"),
        ([*SWEEP, "hydra.run={dir:x}"], "hydra.run.dir"),
        (["hydra.sweep={dir:x}"], "hydra.sweep.dir"),
    ],
)
def test_overrides_without_effect_are_refused(overrides, needs, call, work_folder):
    done = call(*TINY, *overrides)
    key = overrides[-1].partition("=")[0]
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {key}=") and needs in done.stderr
    assert not list(work_folder.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy.world_size=1,2", "strategy.comm_hook=fp16"],
        ["strategy.wrap_single_rank=true", "strategy.bucket_cap_mb=3", "seed=1,2"],
        ["seed=1,2", "sweep.on_failure=stop", "hydra.sweep.dir=x"],
        ["measure.target_interval=0.1", "measure.max_repeats=3", "seed=1,2"],
        ["dataset.pipeline=memory,workers", "dataset.num_workers=3"],
        # Repeats the default.
        ["seed=1,2", "strategy.comm_hook=none", "measure.max_repeats=20", "device.fallback=cpu"],
    ],
)
def test_an_override_with_an_effect_on_one_run_is_accepted(overrides, call, work_folder):
    done = call("-m", *TINY, *overrides, "sweep.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert not list(work_folder.iterdir())


@pytest.mark.parametrize("how", [["--config-dir", "own"], ["hydra.searchpath=[own]"]])
@pytest.mark.parametrize("name", ["model/mlp.yaml", "experiment/strong_scaling.yaml", "config.yaml"])
def test_an_option_that_hydra_would_not_find_is_refused(name, how, call, work_folder):
    path = work_folder / "own" / name
    path.parent.mkdir(parents=True)
    path.write_text("seed: 7\n")
    done = call(*how, *TINY)
    assert done.returncode == 2 and name in done.stderr
    assert [entry.name for entry in work_folder.iterdir()] == ["own"]


def test_a_resumed_sweep_refuses_overrides_without_effect(two_runs, call):
    before = sorted(two_runs.rglob("*"))
    done = call("sweep.resume=multirun/sweep", "measure.max_repeats=3")
    assert done.returncode == 2 and "measure.max_repeats" in done.stderr
    assert sorted(two_runs.rglob("*")) == before


def test_a_file_may_hold_keys_without_effect(train, work_folder):
    folder = work_folder / "own/experiment"
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text("# @package _global_\nsweep: {on_failure: stop}\nstrategy: {comm_hook: fp16}\n")
    done = train("--config-dir", "own", "experiment=both", *TINY, "training.epochs=1")
    assert done.returncode == 0, done.stderr


# Mistakes for which Hydra only warns, or names no remedy.


@pytest.mark.parametrize("mode", [[], SWEEP, ["--cfg", "job"]])
@pytest.mark.parametrize("place", ["/nowhere", "pkg://nowhere.conf"])
def test_a_folder_of_the_search_path_must_exist(mode, place, call, work_folder):
    done = call(*TINY, NO_REPORT, *mode, f"hydra.searchpath=[{place}]")
    assert done.returncode == 2 and "hydra.searchpath" in done.stderr and "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(work_folder.iterdir())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("optimizer@scheduler=adam", "optimizer=adam"),
        ("model@model=mlp", "model=mlp"),
        ("~run_dir", "Leave it out"),
        ("~dataset.root", "Leave it out"),
        ("~training.epochs=3", "~training.epochs"),
        ("~optimizer=sgd", "~optimizer"),
    ],
)
def test_a_key_that_cannot_be_added_or_deleted_is_named(override, instead, call):
    done = call(override)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {override}: ") and instead in done.stderr


@pytest.mark.parametrize(
    "override",
    ["scheduler.step_size=0", "+optimizer.betas=[0.9,2.0]", "optimizer.weight_decay=-1", "optimizer.lr=1e400"],
)
def test_an_error_of_a_constructor_is_shown_with_its_arguments(override, call, work_folder):
    done = call(*TINY, override)
    group, _, argument = override.lstrip("+").partition("=")[0].partition(".")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {group}") and f"{argument}=" in done.stderr
    assert not list(work_folder.iterdir())
