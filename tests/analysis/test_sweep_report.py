"""Real sweeps, complete, partial or failed, end with a report."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tests.support import processes
from tests.support.settings import NO_REPORT, TINY

SWEEP = ("-m", *TINY, "training.epochs=2", "hydra.sweep.dir=sweep")
SUMMARY = Path("sweep/summary")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder and the output of a sweep over two numbers of ranks and two seeds."""
    folder = tmp_path_factory.mktemp("swept")
    looked_at = ("measure.breakdown=true", "logger=tensorboard")
    done = processes.run(*SWEEP, *looked_at, "seed=1,2", "strategy.world_size=1,2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_sweep_ends_with_the_tables(swept):
    _, shown = swept
    tables = shown[shown.index("How does this training scale to 1 and 2 ranks?") :]
    assert "2 ranks train at" in tables and "interval of 2 repeats" in tables
    assert "Where the time goes" in tables and "communication" in tables
    assert "report.html" in tables and "tensorboard --logdir sweep" in tables


def test_figures_are_those_of_the_runs(swept):
    folder, _ = swept
    runs = [json.loads((folder / "sweep" / str(number) / "run.json").read_text()) for number in range(4)]
    seconds = {
        size: [1 / run["timing"]["samples_per_s"] for run in runs if run["strategy"]["world_size"] == size]
        for size in (1, 2)
    }
    scaling = list(csv.DictReader((folder / SUMMARY / "scaling.csv").open()))
    assert [row["world_size"] for row in scaling] == ["1", "2"]
    assert float(scaling[1]["speedup"]) == pytest.approx(sum(seconds[1]) / sum(seconds[2]))
    parts = ("ideal", "contention", "oversubscription", "communication", "straggler_delay", "rest")
    step = sum(float(scaling[1][f"{part}_s_per_step"]) for part in parts)
    assert step == pytest.approx(float(scaling[1]["step_s_per_step"]))


def test_hparams_tab_knows_what_was_swept(swept):
    folder, _ = swept
    events = EventAccumulator(str(folder / SUMMARY / "tensorboard" / "plots"))
    events.Reload()
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"seed", "strategy.world_size"}
    assert "hparam/samples_per_s" in {info.name.tag for info in experiment.metric_infos}
    for label in ("0/tensorboard/seed=1 ws=1", "3/tensorboard/seed=2 ws=2"):
        run = EventAccumulator(str(folder / "sweep" / label))
        run.Reload()
        assert "_hparams_/session_start_info" in run.summary_metadata
        assert "_hparams_/experiment" not in run.summary_metadata  # the first one found would be shown for all
        assert run.Scalars("hparam/samples_per_s")[0].value > 0


def test_reports_are_written_even_if_stdout_is_closed(swept, start, work_folder):
    folder, _ = swept
    process = start(folder / "sweep", "--out", "elsewhere", module="laptime.analysis")
    process.stdout.close()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert Path("elsewhere/report.html").exists()


def test_analysis_loads_no_torch(swept, work_folder):
    folder, _ = swept
    script = (
        "import sys; from laptime.analysis.__main__ import main; code = main([sys.argv[1], '--out', 'elsewhere']); "
        "sys.exit(code or int(any(name in sys.modules for name in ('torch', 'pytorch_lightning', 'tensorflow'))))"
    )
    command = [sys.executable, "-c", script, str(folder / "sweep")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=processes.DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert Path("elsewhere/report.html").exists()


def test_failed_runs_are_listed_and_the_rest_is_reported(call, unrendered, work_folder):
    done = call(*SWEEP, "optimizer.lr=0.001,1e30,0.002")
    assert done.returncode == 1
    summary = json.loads((SUMMARY / "summary.json").read_text())
    assert [Path(run["path"]).name for run in summary["skipped"]] == ["1"]
    assert "failed: " in summary["skipped"][0]["reason"]
    assert len(summary["groups"]) == 2
    assert "By optimizer.lr" in done.stdout and "Skipped runs" in done.stdout


def test_a_sweep_that_stops_early_is_reported_too(call, unrendered, work_folder):
    done = call(*SWEEP, "optimizer.lr=0.001,1e30,0.002", "sweep.on_failure=stop")
    assert done.returncode == 1
    assert len(json.loads((SUMMARY / "summary.json").read_text())["groups"]) == 1
    assert "1 of 3 runs of the sweep were not started" in done.stderr


def test_the_report_can_be_left_out(call, work_folder):
    done = call(*SWEEP, "seed=1,2", "training.epochs=1", NO_REPORT)
    assert done.returncode == 0, done.stderr
    assert Path("sweep/1/run.json").exists() and not SUMMARY.exists()


@pytest.mark.soak
def test_an_experiment_can_be_a_sweep(train, work_folder):
    done = train("experiment=weak_scaling", *SWEEP[1:], "seed=1", "strategy.world_size=1,2")
    assert done.returncode == 0, done.stderr
    scaling = list(csv.DictReader((SUMMARY / "scaling.csv").open()))
    assert [row["world_size"] for row in scaling] == ["1", "2"]
    assert [row["communication_s_per_step"] for row in scaling] == ["0.0", ""]  # empty: not measured


@pytest.mark.soak
def test_the_answer_names_an_absent_accelerator(train, work_folder):
    done = train("experiment=device_benchmark", "model=mlp", *SWEEP[1:], "seed=1", "device=cpu,mps")
    assert done.returncode == 0, done.stderr
    assert "device=mps is not available" in done.stderr
    assert "No results for mps: not available on this machine." in " ".join(done.stdout.split())
