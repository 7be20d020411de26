"""The thread that samples memory: with real processes, and with fake devices."""

import logging
import subprocess
import sys

import psutil
import pytest
from tests.support.processes import until
from tests.support.settings import TINY

from laptime.machine.device import Device
from laptime.measure import sampler as module
from laptime.measure.sampler import Sampler
from laptime.record.files import read_record

MEBIBYTE = 2**20
HOLDING = f"import time; held = bytearray(200 * {MEBIBYTE}); print('ready', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDING!r}])"
CPU = Device("cpu", "cpu", "made up", 1, None)


class Accelerator(Device):
    """A fake device whose memory fills up."""

    taken = 0

    def memory_bytes_now(self) -> int:
        Accelerator.taken += 100
        return Accelerator.taken % 301

    def memory_use(self) -> tuple[float, int, int]:
        return 0.95, 10**9, 9 * 10**8


def sampler(*pids: int, device: Device = CPU, warn_at: float = 1.0) -> Sampler:
    return Sampler(pids, device, interval_s=0.01, warn_at=warn_at)


@pytest.fixture
def parent():
    """A process whose child holds 200 MiB."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process.pid
    for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        member.kill()
    process.wait(timeout=60)


def test_child_processes_are_included(parent):
    memory_sampler = sampler(parent)
    memory_sampler.sample()
    assert memory_sampler.peak_rss_bytes > 200 * MEBIBYTE


def test_ranks_are_summed(parent):
    both, alone = sampler(parent, psutil.Process().pid), sampler(parent)
    both.sample()
    alone.sample()
    assert both.peak_rss_bytes > alone.peak_rss_bytes


def test_an_ended_process_counts_as_zero():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    memory_sampler = sampler(process.pid)
    memory_sampler.sample()
    assert memory_sampler.peak_rss_bytes == 0


def test_the_sampler_runs_until_it_is_stopped_and_measures_its_cost():
    memory_sampler = sampler(psutil.Process().pid)
    memory_sampler.start()
    until(lambda: memory_sampler.num_samples >= 3)
    memory_sampler.stop()
    assert (
        0 < memory_sampler.cost_s < memory_sampler.wall_s
        and memory_sampler.cost_fraction == memory_sampler.cost_s / memory_sampler.wall_s
    )
    number = memory_sampler.num_samples
    memory_sampler.stop()
    assert memory_sampler.num_samples == number


def test_expensive_samples_are_taken_less_often(monkeypatch):
    memory_sampler, used_s, waits = sampler(), [0.0], []
    monkeypatch.setattr(module.time, "thread_time", lambda: used_s[0])
    monkeypatch.setattr(memory_sampler, "sample", lambda: used_s.append(used_s.pop() + 0.5))
    monkeypatch.setattr(memory_sampler._stopped, "wait", lambda seconds: waits.append(seconds) or len(waits) == 2)
    memory_sampler._run()
    assert waits == [pytest.approx(0.5 / Sampler._MAX_COST_FRACTION)] * 2
    assert memory_sampler.cost_s == 1.0


def test_the_peak_of_a_device_that_only_reports_current_memory():
    Accelerator.taken = 0
    memory_sampler = sampler(device=Accelerator("mps", "mps", "made up", 1, 10**9))
    for _ in range(5):
        memory_sampler.sample()
    assert memory_sampler.peak_device_memory_bytes == 300


def test_it_warns_once(caplog):
    memory_sampler = sampler(psutil.Process().pid, warn_at=1e-6)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            memory_sampler.sample()
    (record,) = caplog.records
    assert "of memory" in record.getMessage() and "training.batch_size" in record.getMessage()


def test_it_warns_about_the_memory_of_the_device(caplog):
    memory_sampler = sampler(device=Accelerator("cuda", "cuda", "made up", 1, 10**9), warn_at=0.94)
    with caplog.at_level(logging.WARNING):
        memory_sampler.sample()
    assert "95% of the cuda device's memory (1.0 GB) is in use, 0.9 GB of it by this run" in caplog.text


def test_it_warns_about_the_limit_of_the_container(caplog, monkeypatch):
    monkeypatch.setattr(module, "container_memory_bytes", lambda: 10 * MEBIBYTE)
    with caplog.at_level(logging.WARNING):
        sampler(psutil.Process().pid).sample()
    assert "of the container's memory" in caplog.text


def test_below_the_threshold_there_is_no_warning(caplog):
    device = Accelerator("cuda", "cuda", "made up", 1, 10**9)
    with caplog.at_level(logging.WARNING):
        sampler(device=device, warn_at=0.96).sample()
    assert not caplog.records


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_is_sampled(world_size, trained):
    # The callback waits for two samples, on a machine of any speed.
    callback = "+callbacks.wait={_target_:wait_for_samples.WaitForSamples,number:2}"
    sampled = ["measure.sample_interval_s=0.02", callback, f"strategy.world_size={world_size}"]
    resources = read_record(trained(*TINY, "training.epochs=1", *sampled))["resources"]
    assert resources["sampler_num_samples"] >= 2
    assert 0 < resources["sampler_cpu_fraction"] < 1
    cores = resources["cpu_percent_by_core"]
    assert len(cores) == psutil.cpu_count() and all(0 <= percent <= 100.001 for percent in cores)
    assert resources["peak_rss_bytes"] > world_size * 200 * MEBIBYTE


def test_a_run_without_an_interval_is_not_sampled(trained):
    resources = read_record(trained(*TINY, "training.epochs=1", "measure.sample_interval_s=null"))["resources"]
    assert resources["sampler_num_samples"] is None and resources["peak_rss_bytes"] > 200 * MEBIBYTE
