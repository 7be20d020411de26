"""The thread that looks at memory: real processes, and made-up ones where this machine has none."""

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
FAMILY = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDING!r}])"
CPU = Device("cpu", "cpu", "made up", 1, None)


class Accelerator(Device):
    """One whose memory fills up."""

    taken = 0

    def memory_bytes_now(self) -> int:
        Accelerator.taken += 100
        return Accelerator.taken % 301

    def memory_use(self) -> tuple[float, int, int]:
        return 0.95, 10**9, 9 * 10**8


def sampler(*pids: int, device: Device = CPU, warn_at: float = 1.0) -> Sampler:
    return Sampler(pids, device, interval_s=0.01, warn_at=warn_at)


@pytest.fixture
def family():
    """A process whose child holds 200 MiB."""
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process.pid
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        each.kill()
    process.wait(timeout=60)


def test_children_count(family):
    one = sampler(family)
    one.sample()
    assert one.peak_rss_bytes > 200 * MEBIBYTE


def test_ranks_are_summed(family):
    both, alone = sampler(family, psutil.Process().pid), sampler(family)
    both.sample()
    alone.sample()
    assert both.peak_rss_bytes > alone.peak_rss_bytes


def test_a_process_that_is_gone_takes_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    one = sampler(process.pid)
    one.sample()
    assert one.peak_rss_bytes == 0


def test_the_sampler_runs_until_it_is_stopped_and_knows_its_cost():
    one = sampler(psutil.Process().pid)
    one.start()
    until(lambda: one.num_samples >= 3)
    one.stop()
    assert 0 < one.cost_s < one.wall_s and one.cost_fraction == one.cost_s / one.wall_s
    number = one.num_samples
    one.stop()
    assert one.num_samples == number


def test_samples_that_cost_much_are_taken_less_often(monkeypatch):
    one, used_s, waits = sampler(), [0.0], []
    monkeypatch.setattr(module.time, "thread_time", lambda: used_s[0])
    monkeypatch.setattr(one, "sample", lambda: used_s.append(used_s.pop() + 0.5))
    monkeypatch.setattr(one._stopped, "wait", lambda seconds: waits.append(seconds) or len(waits) == 2)
    one._run()
    assert waits == [pytest.approx(0.5 / Sampler._MOST_COST)] * 2
    assert one.cost_s == 1.0


def test_the_peak_of_a_device_that_keeps_none():
    Accelerator.taken = 0
    one = sampler(device=Accelerator("mps", "mps", "made up", 1, 10**9))
    for _ in range(5):
        one.sample()
    assert one.peak_device_memory_bytes == 300


def test_memory_is_warned_of_once(caplog):
    one = sampler(psutil.Process().pid, warn_at=1e-6)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            one.sample()
    (record,) = caplog.records
    assert "of memory" in record.getMessage() and "training.batch_size" in record.getMessage()


def test_a_devices_memory_is_warned_of_as_well(caplog):
    one = sampler(device=Accelerator("cuda", "cuda", "made up", 1, 10**9), warn_at=0.94)
    with caplog.at_level(logging.WARNING):
        one.sample()
    assert "95% of the cuda device's memory (1.0 GB) is in use, 0.9 GB of it by this run" in caplog.text


def test_a_containers_limit_is_warned_of_as_well(caplog, monkeypatch):
    monkeypatch.setattr(module, "container_memory_bytes", lambda: 10 * MEBIBYTE)
    with caplog.at_level(logging.WARNING):
        sampler(psutil.Process().pid).sample()
    assert "of the container's memory" in caplog.text


def test_below_its_share_nothing_is_said(caplog):
    device = Accelerator("cuda", "cuda", "made up", 1, 10**9)
    with caplog.at_level(logging.WARNING):
        sampler(device=device, warn_at=0.96).sample()
    assert not caplog.records


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_is_sampled(world_size, trained):
    # The callback makes sure that the sampler looks twice, however fast the machine trains.
    callback = "+callbacks.wait={_target_:wait_for_samples.WaitForSamples,number:2}"
    sampled = ["measure.sample_interval_s=0.02", callback, f"strategy.world_size={world_size}"]
    resources = read_record(trained(*TINY, "training.epochs=1", *sampled))["resources"]
    assert resources["sampler_num_samples"] >= 2
    assert 0 < resources["sampler_cpu_fraction"] < 1
    cores = resources["cpu_percent_by_core"]
    assert len(cores) == psutil.cpu_count() and all(0 <= percent <= 100.001 for percent in cores)
    assert resources["peak_rss_bytes"] > world_size * 200 * MEBIBYTE


def test_without_an_interval_a_run_is_not_sampled(trained):
    resources = read_record(trained(*TINY, "training.epochs=1", "measure.sample_interval_s=null"))["resources"]
    assert resources["sampler_num_samples"] is None and resources["peak_rss_bytes"] > 200 * MEBIBYTE
