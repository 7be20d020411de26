"""What must not grow from run to run of one process, from epoch to epoch and from job to job; benchmarks/growth.py has
the figures."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.support import processes
from tests.support.repeat_in_one_process import growth
from tests.support.settings import NO_REPORT, TINY

from laptime.record.files import read_epochs
from laptime.sweeps.forget_jobs import ForgetJobs

REPEAT = processes.ROOT / "tests/support/repeat_in_one_process.py"


def counts_of(what: str, number: int, *overrides: str) -> list[dict[str, int]]:
    """The resources that a separate process holds after each run, or within each job of a sweep."""
    done = processes.run(what, number, *overrides, script=REPEAT)
    assert done.returncode == 0, done.stderr
    counts = json.loads(Path("counts.json").read_text())
    assert len(counts) == number
    return counts


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are counted")
@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        (6, ["logger=tensorboard", "measure.breakdown=true", "measure.peak=true"]),
        (6, ["logger=csv"]),
        (4, ["dataset.pipeline=workers", "dataset.num_workers=1"]),
        pytest.param(
            4,
            ["strategy.world_size=2", "strategy.comm_hook=shared_memory"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="shared memory of this kind is Linux's"),
        ),
    ],
    ids=["tensorboard", "csv", "workers", "two ranks"],
)
def test_a_process_does_not_accumulate_resources_over_its_runs(number, overrides, work_folder):
    counts = counts_of("runs", number, *TINY, "training.epochs=1", *overrides)
    assert growth(counts[number // 2 - 1], counts[-1]) == {}


@pytest.mark.soak
def test_memory_does_not_grow_with_the_epochs(work_folder):
    # Makes glibc's allocator return freed memory immediately; other allocators ignore it.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = processes.run(
        *TINY, "training.epochs=150", "logger=tensorboard", "hydra.run.dir=run", environment=allocator, real=True
    )
    assert done.returncode == 0, done.stderr
    rss_bytes = read_epochs(Path("run"))["rss_bytes"].to_numpy()[20:]
    assert np.polyfit(np.arange(len(rss_bytes)), rss_bytes, 1)[0] < 50_000


@pytest.mark.unit
def test_a_job_is_freed_when_the_next_one_starts():
    callback, first, second = ForgetJobs(), *(SimpleNamespace(cfg="cfg", hydra_cfg="hydra") for _ in range(2))
    callback.on_job_start(None, task_function=None)
    callback.on_job_end(None, first)
    assert first.cfg == "cfg"  # later callbacks may need it
    callback.on_job_start(None, task_function=None)
    assert first.cfg is first.hydra_cfg is None
    callback.on_job_end(None, second)
    assert second.cfg == "cfg"


def test_a_sweep_frees_its_jobs(work_folder):
    configurations = [count["omegaconf.dictconfig.DictConfig"] for count in counts_of("jobs", 6, *TINY, NO_REPORT)]
    assert configurations[-1] == configurations[2]
