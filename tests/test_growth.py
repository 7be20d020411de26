"""What must not grow from run to run of one process, from epoch to epoch and from job to job; benchmarks/growth.py has
the figures."""

import gc
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import laptime
from laptime.forget_jobs import ForgetJobs
from laptime.record import read_epochs

SHORT = ["device=cpu", "dataset=synthetic", "dataset.shape=[1,8,8]", "dataset.num_train=300", "dataset.num_test=100",
         "model.hidden_sizes=[16]", "strategy.threads_per_rank=1"]  # fmt: skip


def held() -> tuple[int, int, Counter[str]]:
    """Threads, descriptors and objects of Laptime's and Lightning's classes that are alive in this process."""
    gc.collect()
    names = (f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    packages = ("laptime.", "pytorch_lightning.", "tensorboard.", "omegaconf.")
    objects = Counter(name for name in names if name.startswith(packages))
    return threading.active_count(), psutil.Process().num_fds(), objects


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are counted")
@pytest.mark.parametrize(
    "overrides",
    [
        ["logger=tensorboard"],
        ["logger=csv"],
        ["dataset.pipeline=workers", "dataset.num_workers=1", "logger=none"],
        ["strategy.world_size=2", "strategy.comm_hook=shared_memory", "logger=none"],
    ],
    ids=["tensorboard", "csv", "workers", "two ranks"],
)
def test_a_process_holds_after_six_runs_what_it_held_after_three(overrides, work_folder):
    if "strategy.world_size=2" in overrides and sys.platform != "linux":
        pytest.skip("shared memory of this kind is Linux's")
    after = []
    for number in range(6):
        laptime.run([*SHORT, "training.epochs=1", *overrides, f"hydra.run.dir=run{number}"])
        after.append(held())
    for _ in range(100):  # what has ended may not have been tidied up yet; what is held stays
        if after[5][0] <= after[2][0] and after[5][1] <= after[2][1]:
            break
        time.sleep(0.1)
        after[5] = held()
    (threads, descriptors, objects), (threads_later, descriptors_later, objects_later) = after[2], after[5]
    assert threads_later <= threads
    assert descriptors_later <= descriptors
    assert objects_later - objects == Counter()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_epochs(train, work_folder):
    # An allocator that keeps nothing for later: what is resident is in use. (glibc's; others don't heed it.)
    done = train(*SHORT, "training.epochs=150", "logger=tensorboard", "measure.breakdown=false", "measure.peak=false",
                 "hydra.run.dir=run", MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rss_bytes = read_epochs(Path("run"))["rss_bytes"].to_numpy()[20:]
    assert np.polyfit(np.arange(len(rss_bytes)), rss_bytes, 1)[0] < 50_000


def test_a_job_is_forgotten_when_the_next_one_starts():
    callback, first, second = ForgetJobs(), *(SimpleNamespace(cfg="cfg", hydra_cfg="hydra") for _ in range(2))
    callback.on_job_start(None, task_function=None)
    callback.on_job_end(None, first)
    assert first.cfg == "cfg"  # callbacks that come later may want it
    callback.on_job_start(None, task_function=None)
    assert first.cfg is first.hydra_cfg is None
    callback.on_job_end(None, second)
    assert second.cfg == "cfg"


def test_a_sweep_forgets_its_jobs(work_folder, monkeypatch, capsys):
    from laptime import cli, sweep

    alive = []

    def count(*args, **kwargs):
        alive.append(held()[2]["omegaconf.dictconfig.DictConfig"])
        return {"config": {"optimized_metric": None}, "result": {}, "timing": {}}

    monkeypatch.setattr(sweep, "run_job", count)
    with pytest.raises(SystemExit) as end:
        cli.main(["-m", "seed=range(0,6)", "~hydra.callbacks.report", "device=cpu"])
    assert not end.value.code
    assert alive[-1] == alive[2]
