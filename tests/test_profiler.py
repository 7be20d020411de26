"""Lightning's profilers: what they leave in the run directory, and that a profiled run is no measurement."""

import gzip
import json
from pathlib import Path

import pytest

import laptime

QUICK = [
    "dataset.limit=6000", "training.epochs=1", "device=cpu", "logger=none", "strategy.threads_per_rank=1",
    "hydra.run.dir=here",
]  # fmt: skip
FOLDER = Path("here/profiler")


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_a_report_is_kept(profiler):
    record = laptime.run([*QUICK, f"profiler={profiler}"])
    assert "run_training_batch" in (FOLDER / f"fit-{profiler}.txt").read_text()
    assert record["quality"]["grade"] == "C" and "profiler" in record["quality"]["reasons"][-1]
    assert record["breakdown"]["step_s"] is None and record["peak"]["matmul_flop_per_s"] is None


def test_torchs_profiler_keeps_a_chrome_trace_of_training_steps():
    laptime.run([*QUICK, "profiler=pytorch"])
    (path,) = FOLDER.glob("fit-*training_step*.pt.trace.json*")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    names = {event.get("name") for event in json.loads(text)["traceEvents"]}
    assert "aten::addmm" in names and "Optimizer.step#Adam.step" in names
    assert "aten::addmm" in (FOLDER / "fit-operators.txt").read_text()


def test_each_rank_has_its_own():
    laptime.run([*QUICK, "profiler=simple", "strategy.world_size=2"])
    assert {path.name for path in FOLDER.glob("fit-*")} == {"fit-simple-rank0.txt", "fit-simple-rank1.txt"}


def test_a_profiled_run_is_no_repeat_of_one_that_was_not():
    one, other = (laptime.run([*QUICK, f"profiler={name}", f"hydra.run.dir={name}"]) for name in ("none", "simple"))
    assert one["group_hash"] != other["group_hash"]
