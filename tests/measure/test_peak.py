"""The probe for the peak, on this CPU and with fake clocks, and the MFU of a run."""

import pytest
import torch
from tests.support.settings import TINY

from laptime.machine.device import resolve
from laptime.measure import peak
from laptime.measure.limit import bytes_moved
from laptime.measure.peak import probe
from laptime.ranks.rank import Rank
from laptime.record.files import read_record

CPU = resolve("cpu", "cpu")


@pytest.fixture
def clock(monkeypatch):
    """A fake clock on which every operation takes a millisecond."""
    now = [0.0]

    def perf_counter() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(peak.time, "perf_counter", perf_counter)
    monkeypatch.setattr(peak, "_LARGEST", 512)


@pytest.mark.unit
def test_rates_are_operations_and_bytes_per_second(clock):
    measured = probe(CPU, "32-true", Rank())
    assert measured.matmul_flop_per_s == pytest.approx(2 * 512**3 / 0.001)  # the largest size
    assert measured.copy_bytes_per_s == pytest.approx(2 * 2**25 / 0.001)  # read and written


@pytest.mark.unit
def test_ranks_that_share_cores_get_a_fraction_of_the_peak(clock):
    alone, shared = probe(CPU, "32-true", Rank()), probe(CPU, "32-true", Rank(), cores_per_thread=0.5)
    assert shared.matmul_flop_per_s == alone.matmul_flop_per_s / 2
    assert probe(CPU, "32-true", Rank(), cores_per_thread=4.0) == alone  # spare cores make no rank faster


@pytest.mark.unit
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_products_have_the_precision_of_the_run(precision, dtype, clock, monkeypatch):
    seen = set()
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.add((a.dtype, b.dtype, out.dtype)))
    probe(CPU, precision, Rank())
    assert seen == {(dtype,) * 3}


@pytest.mark.unit
def test_bytes_that_an_optimizer_must_move():
    weight = torch.nn.Parameter(torch.zeros(100))
    weight.grad = torch.ones(100)
    adam = torch.optim.Adam([weight])
    adam.step()
    # Weight read and written, gradient read, two moments read and written, and the count of steps.
    assert bytes_moved(adam) == 4 * (100 * 7 + 2)
    plain = torch.optim.SGD([weight], lr=0.1)
    plain.step()
    assert bytes_moved(plain) == 4 * 300


MEASURED = (*TINY, "training.epochs=2", "measure.breakdown=true", "measure.peak=true")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_records_its_mfu(world_size, trained):
    record = read_record(trained(*MEASURED, f"strategy.world_size={world_size}"))
    peaks, timing = record["peak"], record["timing"]
    flops = record["model"]["flops_per_sample"]
    assert peaks["achieved_flop_per_s"] == pytest.approx(flops * timing["samples_per_s"])
    assert peaks["mfu"] == pytest.approx(peaks["achieved_flop_per_s"] / peaks["matmul_flop_per_s"])
    compute_s = record["breakdown"]["forward_s"] + record["breakdown"]["backward_s"]
    per_step = flops * record["batch"]["global_batch_size"]
    assert peaks["compute_mfu"] == pytest.approx(per_step / compute_s / peaks["matmul_flop_per_s"])
    mfu, name, _ = peaks["verdict"].partition(" MFU (peak: ")
    assert name and float(mfu.rstrip("%")) == pytest.approx(100 * peaks["mfu"], abs=0.5)


def test_measuring_the_peak_does_not_change_the_hash(trained):
    settings = [*MEASURED, "strategy.world_size=1"]
    one, other = read_record(trained(*settings)), read_record(trained(*settings, "measure.peak=false"))
    assert other["peak"]["matmul_flop_per_s"] is None and other["peak"]["verdict"] is None
    assert one["config_hash"] == other["config_hash"]
