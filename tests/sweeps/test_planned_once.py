"""Sweeps run exactly the configurations that were composed and checked, and no argument is ignored."""

import json
from pathlib import Path

import changing_resolver
import pytest
from tests.support.settings import NO_REPORT, TINY

from laptime.cli import run
from laptime.config.compose import hydra_session
from laptime.errors import UserError
from laptime.record.directory import numbered_runs
from laptime.record.files import read_record
from laptime.record.plan import read_plan
from laptime.sweeps.plan import plan_runs

SWEEP = ("-m", *TINY, NO_REPORT, "training.epochs=1", "hydra.sweep.dir=sweep")


def planned(*overrides: str) -> list[list[str]]:
    with hydra_session() as hydra:
        return [run.overrides for run in plan_runs(hydra, overrides)]


def values(jobs: list[list[str]], key: str) -> list[str | None]:
    return [dict(override.split("=", 1) for override in job).get(key) for job in jobs]


# The planned runs.


@pytest.mark.unit
@pytest.mark.parametrize("overrides", [["model=mlp,cnn", "seed=1,2"], ["seed=1,2", "model=mlp,cnn"]])
def test_repeats_are_outermost_in_any_order_of_arguments(overrides):
    assert [sorted(job) for job in planned(*overrides)] == [
        ["model=mlp", "seed=1"], ["model=cnn", "seed=1"], ["model=mlp", "seed=2"], ["model=cnn", "seed=2"],
    ]  # fmt: skip


@pytest.mark.unit
def test_each_of_several_experiments_has_all_of_its_runs():
    jobs = planned("experiment=strong_scaling,weak_scaling", "training.batch_size=64", "seed=1")
    assert values(jobs, "experiment") == ["strong_scaling"] * 3 + ["weak_scaling"] * 3
    assert values(jobs, "strategy.world_size") == ["1", "2", "4"] * 2
    assert set(values(jobs, "seed")) == {"1"} and set(values(jobs, "training.batch_size")) == {"64"}


@pytest.mark.unit
def test_the_sweep_of_an_experiment_applies_to_its_runs_only():
    jobs = planned("experiment=strong_scaling,mnist_99", "strategy.world_size=1,2")
    assert values(jobs, "seed") == ["1", "1", "2", "2", "3", "3", None, None]
    both = planned("experiment=strong_scaling,device_benchmark")
    assert len(both) == 3 * 3 + 3 * 2
    assert values(both, "seed") == sorted(values(both, "seed"))  # all of one seed before the next
    assert set(values(both, "device")) == {None, "cpu", "accelerator"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vit,transformer", "model.width=16"],
        pytest.param(["model=cnn,lstm", "model.dropout=0"], marks=pytest.mark.soak),
    ],
)
def test_a_key_that_only_the_swept_options_have_is_planned(overrides, call):
    """The default options, which no run uses, lack the key."""
    assert call("-m", "dataset=synthetic", *overrides, "sweep.dry_run=true").returncode == 0


def test_a_search_over_a_key_that_the_chosen_option_lacks_names_both(call, work_folder):
    ended = call("-m", "search=accuracy", "model=logistic_regression")
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and list(work_folder.iterdir()) == []
    assert line.startswith("error: model=logistic_regression: ")
    assert "search=accuracy" in line and "model.dropout" in line


def test_a_key_that_only_the_swept_options_have_trains(train, work_folder):
    done = train(*SWEEP, "scheduler=one_cycle,cosine_warmup", "scheduler.warmup_fraction=0.2")
    assert done.returncode == 0, done.stderr
    records = [read_record(path) for path in numbered_runs(work_folder / "sweep").values()]
    assert [record["config"]["scheduler"]["warmup_fraction"] for record in records] == [0.2, 0.2]


def test_shuffled_values_are_drawn_once(train, work_folder):
    done = train(*SWEEP, "training.batch_size=shuffle(8,16,32,64,128)")
    assert done.returncode == 0, done.stderr
    runs = {number: read_record(path) for number, path in numbered_runs(work_folder / "sweep").items()}
    sizes = {number: record["config"]["training"]["batch_size"] for number, record in runs.items()}
    assert sorted(sizes.values()) == [8, 16, 32, 64, 128]
    plan = read_plan(work_folder / "sweep")
    assert plan == {number: f"training.batch_size={size}" for number, size in sizes.items()}
    assert {number: record["run_label"] for number, record in runs.items()} == {
        number: f"batch_size={size}" for number, size in sizes.items()
    }


@pytest.mark.parametrize(
    "override", ["optimizer.lr=0.1,0.10", "seed=1,01", "model=mlp,mlp", "dataset.num_train=300,3e2"]
)
def test_duplicate_runs_are_refused(override, call, work_folder):
    done = call(*SWEEP, override)
    assert done.returncode == 2
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(("search", "model"), [("accuracy", "logistic_regression"), ("both", "resnet18")])
def test_a_search_names_the_dimension_that_an_option_lacks(search, model, call, work_folder):
    done = call(f"search={search}", f"model={model}", "dataset=synthetic")
    assert done.returncode == 2
    for named in ("model.dropout", f"model={model}", f"search={search}"):
        assert named in done.stderr.splitlines()[0]
    assert list(work_folder.iterdir()) == []


# Run directories.


@pytest.mark.parametrize("subdir", ["lr_${optimizer.lr}", "run_${hydra.job.num}", "${hydra.job.override_dirname}"])
def test_unnumbered_run_directories_are_refused(subdir, call, work_folder):
    done = call(*SWEEP, "seed=1,2", f"hydra.sweep.subdir={subdir}")
    assert done.returncode == 2 and "hydra.sweep.subdir" in done.stderr
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize("folder", ["null", pytest.param(".kept", marks=pytest.mark.soak)])
def test_repeats_do_not_depend_on_the_output_subdir(folder, train, work_folder):
    overrides = ["measure.target_interval=1e-9", "measure.max_repeats=2", f"hydra.output_subdir={folder}"]
    done = train(*SWEEP, "training.epochs=2", "seed=1", *overrides)
    assert done.returncode == 0, done.stderr
    records = [read_record(path) for _, path in sorted(numbered_runs(work_folder / "sweep").items())]
    assert [record["seed"] for record in records] == [1, 2]
    assert records[0]["group_hash"] == records[1]["group_hash"]


@pytest.mark.soak
def test_a_sweep_with_another_output_subdir_is_resumed(train, work_folder):
    overrides = [*SWEEP, "seed=1,2", "hydra.output_subdir=.kept"]
    assert train(*overrides).returncode == 0
    record = read_record(work_folder / "sweep/1")
    record["status"], record["config_hash"] = "failed", None  # only its overrides identify it now
    (work_folder / "sweep/1/run.json").write_text(json.dumps(record))
    done = train("sweep.resume=sweep")
    assert done.returncode == 0, done.stderr
    again = read_record(work_folder / "sweep/1")
    assert again["status"] == "completed" and again["seed"] == 2
    assert sorted(numbered_runs(work_folder / "sweep")) == [0, 1]


def test_a_sweep_without_saved_overrides_is_not_resumed(train, call):
    assert train(*SWEEP, "seed=1,2", "hydra.output_subdir=null").returncode == 0
    done = call("sweep.resume=sweep")
    assert done.returncode == 2 and "hydra.output_subdir=null" in done.stderr


# Values that change between the check and the run.


@pytest.mark.parametrize("flag", [[], ["-m"]])
def test_a_value_that_changes_between_check_and_run_is_refused(flag, call, work_folder):
    changing_resolver.register()
    done = call(*flag, *TINY, NO_REPORT, "training.epochs=1", "seed=${changing_resolver:}", "hydra.sweep.dir=sweep")
    assert done.returncode == 2, done.stderr
    assert not list(work_folder.rglob("run.json"))


@pytest.mark.soak
def test_a_value_that_depends_on_the_time_is_resolved_once(train, work_folder):
    done = train(*SWEEP, "seed=1,2", "logger=csv", "logger.csv.name='${now:%f}'")
    assert done.returncode == 0, done.stderr
    assert all(read_record(path)["status"] == "completed" for path in numbered_runs(work_folder / "sweep").values())


# A sweep without -m.


@pytest.fixture
def sweeping_config(work_folder: Path) -> Path:
    """A primary configuration with Hydra's mode MULTIRUN."""
    folder = work_folder / "own"
    folder.mkdir()
    text = "defaults:\n  - config\n  - _self_\nhydra:\n  mode: MULTIRUN\n  sweep:\n    dir: sweep\n"
    (folder / "sweeping.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("seeds", [["seed=1,2"], pytest.param([], marks=pytest.mark.soak)])
def test_a_primary_configuration_may_start_a_sweep(seeds, sweeping_config, train, work_folder):
    arguments = ["--config-dir", "own", "--config-name", "sweeping", *TINY, NO_REPORT, "training.epochs=1"]
    done = train(*arguments, *seeds)
    assert done.returncode == 0, done.stderr
    assert len(numbered_runs(work_folder / "sweep")) == max(1, 2 * len(seeds))


@pytest.mark.parametrize("override", ["experiment=strong_scaling", "search=accuracy"])
def test_from_python_a_sweep_is_refused(override, work_folder):
    with pytest.raises(UserError, match=r"^hydra\.mode"):
        run([*TINY, override])
    assert list(work_folder.iterdir()) == []


# Flags.


@pytest.mark.unit
@pytest.mark.parametrize(
    "flags",
    [
        ["--config-path", "nowhere"], ["-cp", "nowhere"], ["--experimental-rerun", "job.pickle"], ["--resolve"],
        ["--package", "model"], ["--run", "--multirun"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_flag_without_an_effect_is_refused(flags, mode, call, work_folder):
    done = call(*mode, *flags, *TINY)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert list(work_folder.iterdir()) == []


@pytest.mark.unit
@pytest.mark.parametrize("mode", ["RUN", "MULTIRUN"])
def test_hydra_mode_is_refused(mode, call):
    assert call("-m", *TINY, "seed=1,2", f"hydra.mode={mode}").returncode == 2
    assert call(*TINY, f"hydra.mode={mode}").returncode == 2


# Further cases.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-m", "seed=1,2", "hydra.sweeper.max_batch_size=1"], "hydra.sweeper.max_batch_size"),
        (["-m", "hydra.sweeper.params={seed:'1,2'}"], "hydra.sweeper.params"),
        (["-m", "seed=1,2", "training.checkpoint=latest"], "training.checkpoint"),
        (["--config-dir", "own", "experiment=with_params"], "hydra.sweeper.params"),
        (["-m", "--config-dir", "own", "experiment=resumes", "seed=1,2"], "sweep.resume"),
        (["--config-dir", "own", "experiment=resumes"], "sweep.resume"),
    ],
)
def test_settings_without_effect_or_with_varying_effect_are_refused(arguments, named, call, work_folder):
    folder = work_folder / "own/experiment"
    folder.mkdir(parents=True)
    (folder / "with_params.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}\n")
    (folder / "resumes.yaml").write_text("# @package _global_\nsweep: {resume: latest}\n")
    done = call(*arguments, *TINY, NO_REPORT)
    assert done.returncode == 2 and named in done.stderr
    assert [path.name for path in work_folder.iterdir()] == ["own"]


def test_combined_experiments_are_recorded(train, work_folder):
    (work_folder / "own/experiment").mkdir(parents=True)
    for name, text in (("a", "training: {batch_size: 16}"), ("b", "optimizer: {lr: 0.01}")):
        (work_folder / f"own/experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    done = train(*SWEEP, "--config-dir", "own", "experiment=[a],[a,b]", "seed=1")
    assert done.returncode == 0, done.stderr
    names = [read_record(work_folder / f"sweep/{number}")["experiment_name"] for number in (0, 1)]
    assert names == ["a", "a+b"]


@pytest.mark.soak
def test_a_sweep_is_resumed_only_with_the_same_configuration_files(train, work_folder):
    folder = work_folder / "own"
    folder.mkdir()
    (folder / "mine.yaml").write_text("defaults: [config, _self_]\noptimizer: {lr: 0.05}\n")
    flags = ["--config-dir", "own", "--config-name", "mine"]
    assert train(*SWEEP, *flags, "seed=1,2").returncode == 0
    for given in ([], flags[:2], flags[2:]):
        refused = train(*given, "sweep.resume=sweep", "seed=3")
        assert refused.returncode == 2, given
    done = train(*flags, "sweep.resume=sweep", "seed=3")
    assert done.returncode == 0, done.stderr
    assert read_record(work_folder / "sweep/2")["config"]["optimizer"]["lr"] == 0.05


def test_a_resumed_run_uses_its_own_early_stopping_patience(train, work_folder):
    stops = [*TINY, "optimizer.lr=1e-12", "training.epochs=6", "training.early_stopping_patience=2"]
    assert train(*stops, "hydra.run.dir=first").returncode == 0
    first = read_record(work_folder / "first")
    assert first["result"]["stop_reason"] == "early_stopping"
    overrides = [*stops, "training.epochs=9", "training.early_stopping_patience=50", "training.checkpoint=first"]
    done = train(*overrides, "hydra.run.dir=second")
    assert done.returncode == 0, done.stderr
    assert read_record(work_folder / "second")["result"]["stop_reason"] == "epochs"
