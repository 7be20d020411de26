"""Repeats of a sweep, by real runs: outermost, and as many as the interval asks for."""

import json
from pathlib import Path

import pytest

QUICK = ["-m", "dataset.limit=300", "training.epochs=2", "logger=none", "device=cpu", "hydra.sweep.dir=sweep",
         "callbacks.checkpoint.save_best=false"]  # fmt: skip


def jobs_of(sweep: Path) -> list[tuple[int, str]]:
    records = [
        json.loads((path / "run.json").read_text()) for path in sorted(sweep.glob("[0-9]*"), key=lambda p: int(p.name))
    ]
    return [(record["seed"], record["model"]["name"]) for record in records]


@pytest.mark.parametrize("typed", [["model=mlp,cnn", "seed=1,2"], ["seed=1,2", "model=mlp,cnn"]])
def test_repeats_are_outermost_whatever_was_typed_first(typed, train, work_folder):
    done = train(*QUICK, *typed)
    assert done.returncode == 0, done.stderr
    assert jobs_of(work_folder / "sweep") == [(1, "mlp"), (1, "cnn"), (2, "mlp"), (2, "cnn")]


def test_a_sweep_goes_on_until_the_interval_or_the_limit_is_reached(train, work_folder):
    done = train(*QUICK, "optimizer.lr=0.001,0.002", "measure.target_interval=1e-9", "measure.max_repeats=3")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (work_folder / "sweep").glob("*/run.json")]
    assert sorted(record["seed"] for record in records) == [1, 1, 2, 2, 3, 3]
    summary = json.loads((work_folder / "sweep/summary/summary.json").read_text())
    for group in summary["groups"]:
        assert group["seeds"] == [1, 2, 3]
        assert any("target interval of 0.0% not reached with 3 repeats" in remark for remark in group["remarks"])


def test_a_single_run_has_no_target_interval(train, work_folder):
    done = train("measure.target_interval=0.02")
    assert done.returncode == 2
    assert "measure.target_interval=0.02: is for sweeps" in done.stderr
    assert list(work_folder.iterdir()) == []
