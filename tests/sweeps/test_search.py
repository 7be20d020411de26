"""Searches with Optuna's sweeper, real and small, and Pareto fronts computed by hand."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tests.support.settings import NO_REPORT, TINY

from laptime.analysis.search import pareto_front
from laptime.record.directory import numbered_runs
from laptime.record.files import is_maximized, read_record
from laptime.record.latest import newest_sweeps
from laptime.record.score import ACCURACY, BITS_PER_CHARACTER

TWO_EPOCHS = (*TINY, "training.epochs=2")
# A search chooses batch sizes of up to 512.
WITH_LARGE_BATCHES = [*(override for override in TWO_EPOCHS if "batch_size" not in override), "dataset.num_train=1000"]
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1"]


def records(sweep: str) -> list[dict]:
    return [read_record(path) for _, path in sorted(numbered_runs(Path(sweep)).items())]


@pytest.mark.soak
def test_a_search_samples_its_space_and_prints_the_best_trial(train):
    ended = train("search=accuracy", *WITH_LARGE_BATCHES, "hydra.sweeper.n_trials=3", "hydra.sweep.dir=s")
    assert ended.returncode == 0, ended.stderr
    runs = records("s")
    assert [record["status"] for record in runs] == ["completed"] * 3
    rates = {record["config"]["optimizer"]["lr"] for record in runs}
    assert len(rates) == 3 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    best = max(record["result"]["val_accuracy"] for record in runs)
    assert f"Best         val_accuracy {best:.4g} with " in ended.stdout
    assert "What is best in val_accuracy?" in ended.stdout and "Best trials" in ended.stdout
    answer = rf"val_accuracy {best:.4g} with [^:]*lr=[0-9.e-]+[^:]*: the best of 3 groups"
    assert re.search(answer, " ".join(ended.stdout.split()))
    assert "3 of 3" not in ended.stderr and Path("s/summary/report.html").exists()
    assert "run 0 of the sweep" in ended.stderr and "[I 20" not in ended.stderr and "Study" not in ended.stderr
    overrides = yaml.safe_load(Path("s/multirun.yaml").read_text())["hydra"]["overrides"]["task"]
    assert overrides[0] == "search=accuracy" and "training.epochs=2" in overrides
    assert newest_sweeps([Path()]) == [Path("s")]
    resumed = train("sweep.resume=s")
    assert resumed.returncode == 2 and "sweep.resume=s: a search can't be resumed" in resumed.stderr


@pytest.mark.soak
def test_a_failed_trial_does_not_end_a_search(train):
    grid = [*OPTUNA, "hydra/sweeper/sampler=grid", "optimizer=sgd", "optimizer.lr=choice(0.01,1e30)"]
    ended = train("-m", *grid, *TWO_EPOCHS, "hydra.sweep.dir=s")
    assert ended.returncode == 1
    assert sorted(record["status"] for record in records("s")) == ["completed", "failed"]  # a grid's order is random
    assert "1 of 2 runs of the sweep failed" in ended.stderr and "Best         " in ended.stdout
    assert "run 0 of the sweep: optimizer.lr=" in ended.stderr and "measure.breakdown" not in ended.stderr
    assert "sweep.resume" not in ended.stdout and "not started" not in ended.stderr


@pytest.mark.parametrize("sampler", ["grid", pytest.param("tpe", marks=pytest.mark.soak)])
def test_a_search_whose_trials_all_fail_prints_the_reasons(train, sampler):
    search = [*OPTUNA, f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=2", "optimizer=sgd"]
    ended = train("-m", *search, "optimizer.lr=choice(1e29,1e30)", *TWO_EPOCHS, "hydra.sweep.dir=s")
    assert ended.returncode == 1
    assert [record["status"] for record in records("s")] == ["failed"] * 2
    assert "2 of 2 runs of the sweep failed" in ended.stderr and "Traceback" not in ended.stderr
    assert "Best" not in ended.stdout


@pytest.mark.soak
def test_two_objectives_give_a_pareto_front(train):
    ended = train("search=both", *WITH_LARGE_BATCHES, "hydra.sweeper.n_trials=4", "hydra.sweep.dir=s")
    assert ended.returncode == 0, ended.stderr
    printed = " ".join(ended.stdout.split())
    # The trial with the best accuracy may be the fastest, too.
    assert "groups are on the Pareto front" in printed or "the best of 4 groups in all metrics" in printed
    assert Path("s/summary/plots/pareto.png").exists()
    runs = pd.read_csv("s/summary/runs.csv")
    best = runs.sort_values(["val_accuracy", "epoch_time_s"], ascending=[False, True]).iloc[0]
    assert f"{best['val_accuracy']:.4g}" in ended.stdout


@pytest.mark.soak
def test_a_search_for_speed_samples_batch_sizes_and_steps(train):
    quick = [override for override in WITH_LARGE_BATCHES if "threads" not in override and "epochs" not in override]
    ended = train("search=epoch_time", *quick, "hydra.sweeper.n_trials=4", "hydra.sweep.dir=s")
    assert ended.returncode == 0, ended.stderr
    runs = records("s")
    assert [record["status"] for record in runs] == ["completed"] * 4
    assert {record["config"]["training"]["batch_size"] for record in runs} <= {32, 64, 128, 256, 512}
    assert {record["config"]["training"]["steps_per_execution"] for record in runs} <= {1, 4, 16, 64}
    fastest = min(record["timing"]["epoch_time_s"] for record in runs)
    assert f"Best         epoch_time_s {fastest:.4g} with " in ended.stdout


@pytest.mark.soak
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsgaii", "motpe"])
def test_each_sampler_searches(sampler, train):
    objectives = ["optimized_metric=[val_accuracy,epoch_time_s]", "hydra.sweeper.direction=[maximize,minimize]"]
    one = ["optimized_metric=val_accuracy", "hydra.sweeper.direction=maximize"]
    search = [*OPTUNA, f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=3"]
    space = ["optimizer.lr=interval(0.001,0.1)", "model.dropout=interval(0.0,0.5)"]
    metric = objectives if sampler == "motpe" else one
    ended = train("-m", *search, *metric, *space, *TWO_EPOCHS, NO_REPORT, "hydra.sweep.dir=s")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    runs = records("s")
    assert [record["status"] for record in runs] == ["completed"] * 3
    assert all(0.001 <= record["config"]["optimizer"]["lr"] <= 0.1 for record in runs)
    assert all(0.0 <= record["config"]["model"]["dropout"] <= 0.5 for record in runs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimized_metric=val_accuracy"], "'hydra.sweeper.direction=maximize'"),
        (["optimized_metric=[val_accuracy,epoch_time_s]"], "'hydra.sweeper.direction=[maximize,minimize]'"),
        (["optimized_metric=null"], "optimized_metric=null: a search needs an objective"),
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1"),
        (["training.batch_size=choice(64,0)"], "training.batch_size=0"),
        (["sweep.dry_run=true"], "sweep.dry_run=true: not supported with a search"),
        (["hydra.sweeper.params.optimizer.lr=interval(0.1,1)"], "To search it, type optimizer.lr=interval(0.1,1)."),
        (["seed=1,2"], "seed=1,2: a search would pick the luckiest seed"),
        (["hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs=0: must be at least 1"),
        (["hydra.sweeper.max_failure_rate=2"], "hydra.sweeper.max_failure_rate=2.0: must be between 0 and 1"),
        (["model.dropout=interval(0.6,0.1)"], "Optuna's sweeper can't start: The `low` value must be smaller"),
        (["hydra/sweeper/sampler=grid", "model.dropout=interval(0.1,0.6)"], "GridSampler only supports discrete"),
        (["hydra.sweeper.storage=sqlite:////proc/x.db"], "hydra.sweeper.storage=sqlite:////proc/x.db: Optuna's"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be at least 1"),
        (["optimized_metric=nonsense"], "optimized_metric=nonsense: must be one of train_loss"),
        (["measure.target_interval=0.1"], "measure.target_interval=0.1"),
    ],
)
def test_an_invalid_search_is_refused_before_it_starts(overrides, message, call, monkeypatch, work_folder):
    monkeypatch.setattr(
        "laptime.runner.fresh_processes.preload", lambda uses_ddp=False: None
    )  # the process would be unused
    ended = call("-m", *OPTUNA, *TWO_EPOCHS, *overrides)
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and list(work_folder.iterdir()) == []


@pytest.mark.parametrize("metrics", ["[]", "[val_loss,speed]", "3", "{a:b}"])
def test_an_invalid_objective_is_refused(metrics, call):
    ended = call(*TWO_EPOCHS, f"optimized_metric={metrics}")
    assert ended.returncode == 2 and "optimized_metric" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.unit
def test_the_metric_determines_the_direction():
    larger_is_better = ("val_accuracy", "test_accuracy", "samples_per_s", "steps_per_s")
    smaller_is_better = ("val_loss", "epoch_time_s", "time_to_accuracy", "time_to_score", "total_train_s")
    for score in (ACCURACY, BITS_PER_CHARACTER):
        assert all(is_maximized(metric, score) for metric in larger_is_better)
        assert not any(is_maximized(metric, score) for metric in smaller_is_better)
    for metric in ("train_score", "val_score", "test_score"):
        assert is_maximized(metric, ACCURACY) and not is_maximized(metric, BITS_PER_CHARACTER)


@pytest.mark.unit
def test_the_front_has_the_points_that_no_other_beats():
    points = [(0.90, 1.0), (0.95, 2.0), (0.94, 2.5), (0.99, 9.0), (0.90, 1.5), (0.95, 2.0)]
    assert pareto_front(points, ("val_accuracy", "epoch_time_s"), ACCURACY) == (3, 1, 5, 0)
    assert pareto_front(points, ("val_score", "epoch_time_s"), ACCURACY) == (3, 1, 5, 0)
    assert pareto_front(points, ("val_score", "epoch_time_s"), BITS_PER_CHARACTER) == (0,)
    assert pareto_front(points, ("epoch_time_s", "val_loss"), ACCURACY) == (0,)
    assert pareto_front([(1.0, 1.0)], ("val_loss", "epoch_time_s"), ACCURACY) == (0,)
