"""Counters of faked /proc and /sys trees, and of this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.support.processes import until

from laptime.machine.counters import Noise, Snapshot, delta, on_battery, percent_by_core, snapshot

HZ = os.sysconf("SC_CLK_TCK")


def tree(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def stat(user: float, steal: float) -> str:
    fields = [user, 1.0, 2.0, 1000.0, 50.0, 0.5, 0.5, steal, 3.0, 0.0]
    return "cpu  " + " ".join(str(int(field * HZ)) for field in fields) + "\ncpu0 1 2 3\n"


@pytest.mark.unit
def test_counters_by_hand(work_folder):
    root = tree(work_folder, proc__stat=stat(10, 7), proc__vmstat="pgfault 9\npswpin 3\npswpout 4\n",
                proc__loadavg="1.50 0.5 0.2 1/2 3\n")  # fmt: skip
    tree(root, **{"sys__fs__cgroup__cpu.stat": "usage_usec 5\nthrottled_usec 2500000\n"})
    tree(root, **{"proc__7__status": "Name:\tx\nnonvoluntary_ctxt_switches:\t12\n",
                  "proc__8__status": "nonvoluntary_ctxt_switches:\t30\n"})  # fmt: skip
    for number, khz in enumerate((2_000_000, 3_000_000)):
        tree(root, **{f"sys__devices__system__cpu__cpu{number}__cpufreq__scaling_cur_freq": f"{khz}\n"})
    for number, text in enumerate(("45000", "71500", "-273000")):
        tree(root, **{f"sys__class__thermal__thermal_zone{number}__temp": text})
    counters = snapshot([7, 8], root)
    assert (counters.busy_s, counters.steal_s) == (14.0, 7.0)
    assert (counters.throttled_s, counters.num_swapped_pages, counters.num_switches) == (2.5, 7, 42)
    assert (counters.frequency_hz, counters.temperature_celsius, counters.load) == (2.5e9, 71.5, 1.5)


@pytest.mark.unit
def test_switches_of_all_threads_are_counted(work_folder):
    line = "nonvoluntary_ctxt_switches:\t{}\n"
    tree(work_folder, **{"proc__7__status": line.format(1), "proc__7__task__7__status": line.format(1),
                         "proc__7__task__9__status": line.format(40)})  # fmt: skip
    assert snapshot([7], work_folder).num_switches == 41


@pytest.mark.unit
def test_percent_by_core_by_hand(work_folder):
    first = "cpu  0 0 0 0 0 0 0 0\ncpu0 100 0 0 100 0 0 0 0\ncpu1 0 0 0 200 0 0 0 0\nintr 5\n"
    second = "cpu  0 0 0 0 0 0 0 0\ncpu0 150 20 5 120 5 0 0 0\ncpu1 0 0 0 300 0 0 0 0\nintr 6\n"
    before = snapshot([], tree(work_folder, proc__stat=first))
    after = snapshot([], tree(work_folder, proc__stat=second))
    assert percent_by_core(before, after) == [75.0, 0.0]
    assert percent_by_core(before, snapshot([], work_folder / "absent")) == []


@pytest.mark.unit
def test_a_counter_that_the_system_lacks_is_none(work_folder):
    counters = snapshot([1], work_folder)
    names = ("busy_s", "steal_s", "throttled_s", "num_swapped_pages", "num_switches", "frequency_hz")
    assert [getattr(counters, name) for name in (*names, "temperature_celsius")] == [None] * 7
    assert on_battery(work_folder) is None


@pytest.mark.unit
def test_older_containers_and_frequencies_without_cpufreq(work_folder):
    tree(work_folder, **{"sys__fs__cgroup__cpu__cpu.stat": "nr_throttled 4\nthrottled_time 1500000000\n",
                         "proc__cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2400.5\n"})  # fmt: skip
    counters = snapshot([], work_folder)
    assert (counters.throttled_s, counters.frequency_hz) == (1.5, 2_400_500_000.0)


@pytest.mark.unit
@pytest.mark.parametrize("content", ["", "cpu", "cpu a b c d e f g h", "\x00"])
def test_damaged_files_give_none(content, work_folder):
    tree(work_folder, proc__stat=content, proc__vmstat=content, proc__cpuinfo=content)
    counters = snapshot([], work_folder)
    assert (counters.busy_s, counters.num_swapped_pages, counters.frequency_hz) == (None, None, None)


@pytest.mark.unit
def test_differences_by_hand():
    before = Snapshot(10.0, 100.0, 5.0, 1.0, 10, 100, 3e9, 50.0, 0.1)
    after = Snapshot(20.0, 125.0, 6.0, 1.5, 30, 150, 2e9, 80.0, 2.0)
    noise = delta(before, after, own_cpu_s=20.0, num_cores=4)
    assert noise == Noise(
        wall_s=10.0, other_cores=0.5, steal_fraction=1 / 40, throttled_fraction=0.05, num_swapped_pages=20,
        involuntary_switches_per_s=5.0, frequency_hz=2e9, temperature_celsius=80.0,
    )  # fmt: skip
    unknown = Snapshot(20.0, None, None, None, None, None, None, None, None)
    assert delta(before, unknown, 1.0, 4) == Noise(wall_s=10.0)


@pytest.mark.unit
@pytest.mark.parametrize(("online", "expected"), [("0", True), ("1", False)])
def test_battery(online, expected, work_folder):
    tree(work_folder, sys__class__power_supply__BAT0__type="Battery", sys__class__power_supply__AC__type="Mains",
         sys__class__power_supply__AC__online=online)  # fmt: skip
    assert on_battery(work_folder) is expected


@pytest.mark.soak
@pytest.mark.alone
def test_a_busy_process_is_detected_on_this_machine():
    if snapshot().busy_s is None:
        pytest.skip("this system does not tell what its CPUs do")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"], text=True)
    try:
        before, cpu_before_s, started_s = snapshot([busy.pid]), time.process_time(), planted_s(busy)
        until(lambda: planted_s(busy) >= started_s + 0.5, busy)  # may take long on a busy machine
        noise = delta(before, snapshot([busy.pid]), time.process_time() - cpu_before_s, os.cpu_count() or 1)
    finally:
        busy.kill()
        busy.wait(timeout=60)
    assert noise.other_cores * noise.wall_s >= 0.45


def planted_s(process: subprocess.Popen) -> float:
    return sum(psutil.Process(process.pid).cpu_times()[:2])
