"""Latency: which calls are timed and which percentiles are reported. No test depends on the speed of the machine."""

from dataclasses import replace

import pytest
import torch

from laptime.errors import UserError
from laptime.evaluation.keys import LatencyConfig
from laptime.machine.device import describe
from laptime.measure import latency
from laptime.measure.latency import measure

pytestmark = pytest.mark.unit

IMAGES = torch.rand(5, 1, 4, 4)
SETTINGS = LatencyConfig(batch_sizes=[1], num_calls=100, warmup_calls=4, time_limit_s=60.0)


def timed(batch_size: int = 1, **settings):
    calls = []
    result = measure({"a": calls.append}, IMAGES, batch_size, describe("cpu", "cpu"), replace(SETTINGS, **settings))[
        "a"
    ]
    return result, calls


def test_warm_up_calls_are_not_timed():
    result, calls = timed()
    assert result.num_calls == 100
    assert len(calls) == 100 + 4 + 4 * 3  # 4 in the first of 5 rounds, 3 in each other


@pytest.mark.parametrize(("num_calls", "given"), [(1, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_percentiles_need_enough_calls(num_calls, given):
    result, _ = timed(num_calls=num_calls)
    assert result.num_calls == num_calls
    assert [result.p50_s, result.p95_s, result.p99_s].count(None) == 3 - given


def test_no_call_starts_after_the_time_limit():
    result, _ = timed(time_limit_s=1e-9)
    assert result.num_calls == 5  # one in each round


def test_images_are_repeated_in_a_larger_batch():
    _, calls = timed(batch_size=12)
    assert torch.equal(calls[0], torch.cat([IMAGES, IMAGES, IMAGES[:2]]))


def test_networks_alternate():
    order = []
    networks = {name: lambda _, name=name: order.append(name) for name in "ab"}
    measure(networks, IMAGES, 1, describe("cpu", "cpu"), replace(SETTINGS, num_calls=2, warmup_calls=1))
    assert order == list("aabbaabb")


def test_a_batch_that_does_not_fit_into_memory_is_refused():
    with pytest.raises(UserError, match=r"latency\.batch_sizes="):
        timed(batch_size=10**14)  # exceeds the address space, so it fails even if the system overcommits memory


def test_settings_and_too_many_threads_count_as_interference(monkeypatch):
    monkeypatch.setattr(latency, "settings", lambda: {"ATEN_CPU_CAPABILITY": "default"})
    monkeypatch.setattr(latency, "usable_cores", lambda: torch.get_num_threads())
    reasons = "; ".join(latency.Disturbances().reasons())
    assert "ATEN_CPU_CAPABILITY=default" in reasons and "threads" not in reasons
    monkeypatch.setattr(latency, "usable_cores", lambda: torch.get_num_threads() - 1)
    assert "more threads" in "; ".join(latency.Disturbances().reasons())
