"""Grades and their reasons, from recorded counters and with a real load."""

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from tests.support.settings import QUICK

import laptime
from laptime.lap.quality import assess, outliers, slow_start
from laptime.machine.counters import Noise, snapshot
from laptime.machine.device import usable_cores

QUIET = Noise(
    wall_s=2.0, other_cores=0.02, steal_fraction=0.001, throttled_fraction=0.0, num_swapped_pages=0,
    involuntary_switches_per_s=5.0, frequency_hz=3.0e9, temperature_celsius=60.0,
)  # fmt: skip
EVEN = [2.0, 2.01, 1.99, 2.0]


@pytest.mark.unit
def test_idle_machine_gets_an_a_without_reasons():
    quality = assess([QUIET] * 4, EVEN, num_cores=4, battery=False)
    assert (quality.grade, quality.reasons) == ("A", ())


@pytest.mark.unit
def test_unknown_counters_do_not_lower_the_grade():
    assert assess([Noise(wall_s=2.0)] * 4, EVEN, num_cores=4).grade == "A"
    assert assess([], [], num_cores=1).grade == "A"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changed", "grade", "words"),
    [
        ({"steal_fraction": 0.02}, "B", "CPU steal 2%"),
        ({"steal_fraction": 0.2}, "C", "CPU steal 20%"),
        ({"other_cores": 0.4}, "B", "other processes kept 10% of the cores busy"),
        ({"other_cores": 4.0}, "C", "other processes kept 100% of the cores busy"),
        ({"throttled_fraction": 0.3}, "C", "quota throttled it 30% of the time"),
        ({"num_swapped_pages": 20}, "B", "10 swapped pages/s"),
        ({"temperature_celsius": 97.0}, "B", "97 °C"),
        ({"involuntary_switches_per_s": 2655.0}, "B", "2,655 involuntary context switches/s"),
    ],
)
def test_each_disturbance_is_named(changed, grade, words):
    quality = assess([replace(QUIET, **changed)] * 4, EVEN, num_cores=4)
    assert quality.grade == grade and len(quality.reasons) == 1 and words in quality.reasons[0]


@pytest.mark.unit
@pytest.mark.parametrize(
    "changed", [{"temperature_celsius": 94.0}, {"involuntary_switches_per_s": 90.0}, {"other_cores": 0.19}]
)
def test_small_disturbances_give_no_reason(changed):
    assert assess([replace(QUIET, **changed)] * 4, EVEN, num_cores=4).grade == "A"


def test_switches_between_own_ranks_and_workers_are_ignored():
    switching = replace(QUIET, involuntary_switches_per_s=1500.0)
    assert assess([switching] * 4, EVEN, num_cores=4, crowded=True).grade == "A"


def test_throttling_is_a_falling_frequency():
    epochs = [replace(QUIET, **{"frequency_hz": hz}) for hz in (3.0e9, 2.8e9, 2.0e9)]
    assert assess(epochs, EVEN[:3], num_cores=4).reasons == ("the CPU frequency dropped by 33%",)


def test_one_disturbed_epoch_of_four_is_an_outlier_not_a_verdict():
    quality = assess([QUIET] * 4, [2.0, 2.01, 1.99, 3.0], num_cores=4)
    assert (quality.grade, quality.reasons) == ("B", ("1 of 4 epochs is an outlier",))


def test_the_worst_reason_gives_the_grade():
    quality = assess([replace(QUIET, **{"steal_fraction": 0.5})] * 4, EVEN, 2, battery=True, oversubscribed=True)
    assert quality.grade == "C" and len(quality.reasons) == 3


@pytest.mark.parametrize(
    ("values", "times"),
    [
        ([4.3, 0.26, 0.30, 0.26], 16.5),
        ([0.45, 0.31, 0.32], 1.43),
        ([1.3, 1.0, 1.2], None),  # the others differ as much
        ([1.05, 1.0, 1.0], None),
        ([1.0, 4.0, 1.0], None),
        ([4.0, 1.0], None),
        ([], None),
    ],
)
def test_slow_start_is_a_first_epoch_far_above_the_others(values, times):
    assert slow_start(values) == (None if times is None else pytest.approx(times, rel=0.01))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changed", "oversubscribed", "threads", "suggested"),
    [
        ({"involuntary_switches_per_s": 500.0}, False, 2, True),
        ({"other_cores": 2.0}, False, 2, True),
        ({}, True, 2, True),
        ({"involuntary_switches_per_s": 500.0}, False, 1, False),
        ({"temperature_celsius": 97.0}, False, 2, False),
        ({}, False, 2, False),
    ],
)
def test_one_thread_is_suggested_if_threads_wait_for_a_core(changed, oversubscribed, threads, suggested):
    quality = assess(
        [replace(QUIET, **changed)] * 4, EVEN, num_cores=4, oversubscribed=oversubscribed, threads=(threads, threads)
    )
    assert any("strategy.threads_per_rank=1" in reason for reason in quality.reasons) == suggested


@pytest.mark.unit
def test_slow_settings_and_changed_threads_are_named():
    quality = assess([QUIET] * 4, EVEN, num_cores=4, slowing_settings=["ATEN_CPU_CAPABILITY=default"], threads=(1, 1))
    assert quality.grade == "B" and "ATEN_CPU_CAPABILITY=default" in quality.reasons[0]
    assert assess([QUIET] * 4, EVEN, num_cores=4, threads=(1, 3)).grade == "C"


@pytest.mark.unit
def test_a_warm_up_that_was_too_short_is_named():
    quality = assess([QUIET] * 4, [4.0, 2.0, 2.0, 2.01], num_cores=4)
    assert quality.grade == "B" and "as long as the others: use measure.warmup_epochs=2" in quality.reasons[-1]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 1.0, 1.0, 1.2], [3]), ([1.0, 1.0, 1.0, 1.04], []), ([1.0, 5.0], []), ([1.0, 1.1, 0.9, 1.05, 4.0], [4])],
)
def test_outliers_by_median_absolute_deviation(values, expected):
    assert outliers(values) == expected


def busy_stranger() -> psutil.Process:
    """A busy process that is not a child of this process, so that its work isn't attributed to it."""
    command = f"{sys.executable} -c 'while True: pass' > /dev/null 2>&1 & echo $!"
    return psutil.Process(int(subprocess.check_output(["sh", "-c", command], timeout=60)))


@pytest.mark.soak
@pytest.mark.alone
def test_busy_cores_lower_the_grade(work_folder):
    if snapshot().busy_s is None:
        pytest.skip("this system does not tell what its CPUs do")
    if usable_cores() < 0.2 * (os.cpu_count() or 1):
        pytest.skip("all cores that may be used are few of the machine's")
    busy = [busy_stranger() for _ in range(usable_cores())]
    try:
        record = laptime.run([*QUICK, "training.epochs=3", "dataset.limit=6000"])
    finally:
        for process in busy:
            process.kill()
    quality = record["quality"]
    assert quality["grade"] > "A"
    assert any(reason.startswith("other processes kept") for reason in quality["reasons"])
