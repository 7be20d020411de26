"""Lightning's profilers: their files in the run directory; a profiled run does not count as a measurement."""

import gzip
import json

import pytest
from tests.support.settings import TINY

from laptime.record.files import read_record

MEASURED = (*TINY, "training.epochs=1", "measure.breakdown=true", "measure.peak=true")


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_a_profiler_writes_its_report(profiler, trained):
    run_dir = trained(*MEASURED, f"profiler={profiler}")
    assert "run_training_batch" in (run_dir / f"profiler/fit-{profiler}.txt").read_text()
    record = read_record(run_dir)
    assert record["quality"]["grade"] == "C" and "profiler" in record["quality"]["reasons"][-1]
    assert record["breakdown"]["step_s"] is None and record["peak"]["matmul_flop_per_s"] is None


def test_the_pytorch_profiler_writes_a_chrome_trace_of_training_steps(trained):
    folder = trained(*MEASURED, "dataset.num_train=3000", "profiler=pytorch") / "profiler"
    (path,) = folder.glob("fit-*training_step*.pt.trace.json*")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    names = {event.get("name") for event in json.loads(text)["traceEvents"]}
    # A linear layer calls different kernels on different processors, but always aten::linear.
    assert "aten::linear" in names and "Optimizer.step#Adam.step" in names
    assert "aten::" in (folder / "fit-operators.txt").read_text()  # the slowest operators


def test_each_rank_writes_its_own_profile(trained):
    folder = trained(*MEASURED, "profiler=simple", "strategy.world_size=2") / "profiler"
    assert {path.name for path in folder.glob("fit-*")} == {"fit-simple-rank0.txt", "fit-simple-rank1.txt"}


def test_a_profiled_run_is_not_a_repeat_of_an_unprofiled_run(trained):
    one, other = (read_record(trained(*MEASURED, f"profiler={name}")) for name in ("none", "simple"))
    assert one["breakdown"]["step_s"] > 0
    assert one["group_hash"] != other["group_hash"]
