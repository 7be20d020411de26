"""EpochTimer with a faked time."""

from types import SimpleNamespace

import pytest

from laptime.data.order import EpochOrder
from laptime.lap import clock as lap_clock
from laptime.lap import epoch_timer
from laptime.lap.clock import LapClock
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.timed_loader import TimedLoader
from laptime.ranks.rank import Rank

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class LazyDevice:
    """Asynchronous: pending work takes time at the next synchronization."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.pending = 0.0

    def synchronize(self) -> None:
        self.clock.now += self.pending
        self.pending = 0.0

    def reset_peak_memory(self) -> None:
        pass

    def peak_memory_bytes(self) -> int:
        return 4096


class TwoExecutions:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 2

    def step_groups(self):
        for _ in range(2):
            self.clock.now += 0.25
            yield []


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in (epoch_timer, lap_clock):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock, time=clock))
    monkeypatch.setattr(lap_clock, "usage", lambda: (clock.now / 2, 1024))
    return clock


def run_epoch(timer: EpochTimer, loader: TimedLoader, clock: Clock, device: LazyDevice, epoch: int) -> None:
    trainer = SimpleNamespace(
        train_dataloader=loader, current_epoch=epoch, is_last_batch=False, state=SimpleNamespace(fn="fit"),
        lightning_module=SimpleNamespace(train_sums=SimpleNamespace(num_samples=280, num_batches=2)),
    )  # fmt: skip
    iterator = iter(loader)
    if epoch == 0:
        timer.on_train_start(trainer, None)
    timer.on_train_epoch_start(trainer, None)
    device.pending = 7.0  # work from before the epoch, which doesn't count
    for index, step_group in enumerate(iterator):
        device.pending += 1.0
        trainer.is_last_batch = index == 1
        timer.on_train_batch_end(trainer, None, None, step_group, index)
    clock.now += 50.0  # work after the last step, which doesn't count
    timer.on_validation_start(trainer, None)
    clock.now += 1000.0
    timer.on_train_epoch_end(trainer, None)


def test_lap_is_the_synchronized_time_from_the_first_batch_to_the_last_step(clock):
    device = LazyDevice(clock)
    lap_clock = LapClock(device)
    loader = TimedLoader(TwoExecutions(clock), EpochOrder(300, seed=1), lap_clock, Rank())
    timer = EpochTimer(lap_clock, warmup_epochs=1)
    laps = []
    for epoch in range(3):
        run_epoch(timer, loader, clock, device, epoch)
        assert timer.lap is not None
        laps.append(timer.lap)
    for lap in laps:
        assert lap.time_s == pytest.approx(2 * 0.25 + 2 * 1.0)
        assert lap.data_wait_s == pytest.approx(0.5)
        # The samples that the module has trained on, not those of the loader.
        assert (lap.num_samples, lap.num_steps) == (280, 2)
        assert lap.samples_per_s == pytest.approx(280 / 2.5)
        assert (lap.rss_bytes, lap.device_memory_bytes) == (1024, 4096)
    assert [lap.is_warmup for lap in laps] == [True, False, False]
    assert [lap.number for lap in laps] == [0, 1, 2]
