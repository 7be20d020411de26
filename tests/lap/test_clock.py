"""LapClock with a faked time and an asynchronous device."""

import pickle
from types import SimpleNamespace

import pytest
import torch

from laptime.lap import clock as lap_clock
from laptime.lap.clock import LapClock

pytestmark = pytest.mark.unit


class Now:
    """The time, advanced by the test."""

    def __init__(self) -> None:
        self.s = 100.0
        self.cpu_s = 10.0


class LazyDevice:
    """Asynchronous: pending work takes time at the next synchronization."""

    def __init__(self, now: Now) -> None:
        self.now = now
        self.pending = 0.0
        self.num_waits = 0
        self.num_resets = 0

    def synchronize(self) -> None:
        self.now.s += self.pending
        self.pending = 0.0
        self.num_waits += 1

    def reset_peak_memory(self) -> None:
        self.num_resets += 1

    def peak_memory_bytes(self) -> int:
        return 4096


class Meter:
    """Returns the joules of one window after the other."""

    def __init__(self, *joules: float | None) -> None:
        self.joules = list(joules)
        self.calls: list[str] = []

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> float | None:
        self.calls.append("end")
        return self.joules.pop(0)


@pytest.fixture
def now(monkeypatch) -> Now:
    now = Now()
    monkeypatch.setattr(lap_clock, "time", SimpleNamespace(perf_counter=lambda: now.s))
    monkeypatch.setattr(lap_clock, "usage", lambda: (now.cpu_s, 1024))
    return now


@pytest.fixture
def device(now) -> LazyDevice:
    return LazyDevice(now)


def test_a_lap_is_the_synchronized_time_from_start_to_stop(now, device):
    clock = LapClock(device)
    device.pending = 7.0  # from before the lap
    clock.start()
    assert clock.is_running and not clock.is_paused and clock.started_at == 107.0
    for _ in range(3):
        clock.begin_wait()
        now.s += 0.5
        clock.end_wait()
        device.pending += 2.0
        clock.count(4)
    lap = clock.stop(number=5, is_warmup=True, num_steps=2)
    assert (lap.number, lap.is_warmup, lap.num_steps) == (5, True, 2)
    assert (lap.time_s, lap.data_wait_s, lap.apart_s) == (7.5, 1.5, 0.0)
    assert (lap.num_samples, lap.num_batches, lap.samples_per_s) == (12, 3, 12 / 7.5)
    assert (lap.rss_bytes, lap.device_memory_bytes, lap.energy_joules) == (1024, 4096, None)
    assert not clock.is_running


def test_nothing_waits_for_the_device_between_the_ends_of_a_lap(now, device):
    clock = LapClock(device)
    clock.start()
    waits = device.num_waits
    for _ in range(1000):
        clock.begin_wait()
        clock.end_wait()
        clock.count(1, torch.tensor(1), torch.tensor(1.0))
    assert device.num_waits == waits
    clock.stop(0, False)
    assert device.num_waits == waits + 1


def test_pause_is_excluded_and_synchronizes_at_both_ends(now, device):
    clock = LapClock(device)
    clock.start()
    now.s, now.cpu_s, device.pending = now.s + 1, now.cpu_s + 3, 2.0  # 2 s of the lap are pending
    clock.pause()
    assert clock.is_running and clock.is_paused
    now.s, now.cpu_s, device.pending = now.s + 10, now.cpu_s + 100, 5.0  # a validation, of which 5 s are pending
    clock.resume()
    assert not clock.is_paused
    now.s, now.cpu_s = now.s + 4, now.cpu_s + 7
    lap = clock.stop(0, False)
    assert (lap.time_s, lap.apart_s) == (7.0, 15.0)
    assert (lap.cpu_s, lap.all_cpu_s) == (10.0, 110.0)
    assert lap.cpu_percent == pytest.approx(1000 / 7)


def test_lap_that_ends_paused_ends_at_the_pause(now, device):
    clock = LapClock(device)
    clock.start()
    now.s += 3
    clock.pause()
    now.s += 50
    clock.pause()  # a second call does nothing
    now.s += 50
    lap = clock.stop(0, False)
    assert (lap.time_s, lap.apart_s) == (3.0, 0.0)


def test_calls_without_a_lap_or_a_pause_do_nothing(now, device):
    clock = LapClock(device)
    clock.pause()
    clock.resume()
    clock.end_wait()
    assert not clock.is_running and device.num_waits == 0
    clock.start()
    clock.resume()
    now.s += 1
    clock.end_wait()
    assert clock.stop(0, False).data_wait_s == 0.0


def test_waiting_for_a_batch_ends_with_a_pause(now, device):
    clock = LapClock(device)
    clock.start()
    clock.begin_wait()
    now.s += 1
    clock.pause()
    clock.resume()
    now.s += 1
    clock.end_wait()
    assert clock.stop(0, False).data_wait_s == 0.0


def test_new_lap_starts_from_zero(now, device):
    clock = LapClock(device)
    clock.start()
    clock.count(9, 9, torch.tensor(9.0))
    clock.pause()
    clock.drop()
    assert not clock.is_running and not clock.is_paused
    clock.start()
    clock.count(None)
    clock.start()  # drops a lap that was not stopped
    now.s += 2
    clock.count(1, 2, torch.tensor(3.0))
    lap = clock.stop(1, False)
    assert (lap.time_s, lap.num_samples, lap.num_tokens, lap.num_batches, lap.loss) == (2.0, 1, 2, 1, 3.0)


def test_token_tensors_are_read_at_the_end_of_the_lap(now, device):
    clock = LapClock(device)
    clock.start()
    for number in range(1500):  # more than the clock keeps
        clock.count(1, torch.tensor(number) if number % 3 else number)
    assert len(clock._token_tensors) <= lap_clock._MAX_TENSORS + 1
    assert clock.stop(0, False).num_tokens == sum(range(1500))


def test_losses_are_averaged_over_many_batches(now, device):
    clock = LapClock(device)
    clock.start()
    for number in range(1500):
        clock.count(1, loss=torch.tensor(float(number)) if number % 2 else torch.tensor([float(number)]))
    assert clock.stop(0, False).loss == pytest.approx(749.5)
    clock.start()
    clock.count(1, loss=torch.tensor(1.5, dtype=torch.bfloat16))
    clock.count(1)
    assert clock.stop(0, False).loss == 1.5
    clock.start()
    assert clock.stop(0, False).loss is None


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_one_uncountable_batch_makes_the_count_of_the_lap_unknown(unknown, now, device):
    clock = LapClock(device)
    clock.start()
    for number in range(3):
        is_known = number != unknown
        clock.count(4 if is_known else None, torch.tensor(4) if is_known else None)
    lap = clock.stop(0, False)
    assert (lap.num_samples, lap.num_tokens, lap.num_batches, lap.samples_per_s) == (None, None, 3, None)


def test_counts_passed_to_stop_win(now, device):
    clock = LapClock(device)
    clock.start()
    clock.count(None)
    lap = clock.stop(0, False, num_samples=7, num_batches=5)
    assert (lap.num_samples, lap.num_batches) == (7, 5)


def test_energy_is_measured_while_the_clock_runs(now, device):
    meter = Meter(1.0, 2.0, 4.0)
    clock = LapClock(device, meter)
    clock.start()
    for _ in range(2):
        clock.pause()
        clock.pause()
        clock.resume()
        clock.resume()
    assert clock.stop(0, False).energy_joules == 7.0
    assert meter.calls == ["begin", "end"] * 3


def test_energy_is_unknown_if_one_window_is_unknown(now, device):
    clock = LapClock(device, Meter(1.0, None, 4.0))
    clock.start()
    for _ in range(2):
        clock.pause()
        clock.resume()
    assert clock.stop(0, False).energy_joules is None


def test_the_barrier_is_before_the_lap(now, device):
    clock = LapClock(device)

    def others() -> None:
        now.s += 20

    clock.start(others)
    now.s += 1
    assert clock.stop(0, False).time_s == 1.0


@pytest.mark.parametrize("resets", [True, False])
def test_peak_memory_is_only_reset_on_request(resets, now, device):
    clock = LapClock(device, resets_peak=resets)
    clock.start()
    clock.stop(0, False)
    assert device.num_resets == resets


def test_a_lap_is_plain_values(now, device):
    clock = LapClock(device)
    clock.start()
    now.s += 1
    clock.count(1, torch.tensor(2), torch.tensor(3.0))
    lap = clock.stop(0, False)
    assert pickle.loads(pickle.dumps(lap)) == lap
    assert (type(lap.num_tokens), type(lap.loss)) == (int, float)
