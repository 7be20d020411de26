"""Repeats of a sweep: outermost, and added until the target interval is reached."""

import json

import pytest
from tests.support.settings import TINY

from laptime.record.directory import numbered_runs
from laptime.record.files import read_record


@pytest.mark.soak
def test_a_sweep_repeats_its_runs_until_the_interval_or_the_limit_is_reached(train, work_folder):
    """Seeds are outermost in the numbers of the runs."""
    done = train("-m", *TINY, "training.epochs=2", "optimizer.lr=0.001,0.002", "seed=1,2", "hydra.sweep.dir=sweep",
                 "measure.target_interval=1e-9", "measure.max_repeats=3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [read_record(path) for _, path in sorted(numbered_runs(work_folder / "sweep").items())]
    jobs = [(record["seed"], record["config"]["optimizer"]["lr"]) for record in records]
    assert jobs == [(1, 0.001), (1, 0.002), (2, 0.001), (2, 0.002), (3, 0.001), (3, 0.002)]
    summary = json.loads((work_folder / "sweep/summary/summary.json").read_text())
    assert len(summary["groups"]) == 2
    for group in summary["groups"]:
        assert group["seeds"] == [1, 2, 3]
        assert any("target interval 0.0%: not reached with 3 repeats" in remark for remark in group["remarks"])


@pytest.mark.unit
def test_a_single_run_has_no_target_interval(call, work_folder):
    done = call("measure.target_interval=0.02")
    assert done.returncode == 2
    assert "measure.target_interval=0.02: only works in sweeps" in done.stderr
    assert list(work_folder.iterdir()) == []
