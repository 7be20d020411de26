"""From the device asked for to the one that trains; accelerators are faked, this machine need not have one."""

import logging
from types import SimpleNamespace

import psutil
import pytest
import torch
from tests.support.configs import changed

from laptime.errors import UserError
from laptime.machine import device
from laptime.machine.device import Device
from laptime.training.build import prepare_device

pytestmark = pytest.mark.unit

KINDS = ("cpu", "mps", "cuda", "xpu")


def a_device(used):
    return Device(requested="auto", used=used, name="a chip", num_devices=1, memory_bytes=None)


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


@pytest.fixture
def mps(monkeypatch):
    """A machine with one Apple GPU."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_345)
    monkeypatch.setattr(device, "cpu_name", lambda: "Apple M9")


@pytest.fixture
def cuda(monkeypatch):
    """A machine with two NVIDIA GPUs."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=f"NVIDIA Z10{index}", total_memory=67_890),
    )
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    return chosen


def test_auto_without_accelerator_is_the_cpu(no_accelerator, caplog):
    resolved = device.resolve("auto", "error")
    assert (resolved.requested, resolved.used, resolved.num_devices) == ("auto", "cpu", 1)
    assert not caplog.records


def test_the_cpu_has_its_name_and_the_memory_of_the_machine(no_accelerator):
    resolved = device.resolve("cpu", "error")
    assert (resolved.used, resolved.memory_bytes) == ("cpu", psutil.virtual_memory().total)
    assert resolved.name == device.cpu_name() != ""


def test_device_cpu_is_used_although_there_is_an_accelerator(mps):
    assert device.resolve("cpu", "error").used == "cpu"


@pytest.mark.parametrize("requested", ["auto", "mps"])
def test_present_mps_is_used_and_described(requested, mps, caplog):
    assert device.resolve(requested, "error") == Device(requested, "mps", "Apple M9", 1, 12_345)
    assert not caplog.records


@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_present_cuda_is_used_and_described(requested, cuda):
    assert device.resolve(requested, "error") == Device(requested, "cuda", "NVIDIA Z100", 2, 67_890)


@pytest.mark.parametrize("index", [0, 1])
def test_each_rank_of_a_machine_gets_another_gpu(index, cuda):
    resolved = device.resolve("cuda", "error", index)
    assert (resolved.name, resolved.index) == (f"NVIDIA Z10{index}", index)
    assert resolved.torch_device == torch.device("cuda", index)
    assert cuda == [], "resolve selects no device"
    resolved.select()
    assert cuda == [index], "torch's current device, which synchronize and the memory counts refer to"


@pytest.mark.parametrize("used", ["cpu", "mps"])
def test_a_single_device_needs_no_selecting(used, cuda):
    a_device(used).select()
    assert cuda == []


def test_training_selects_the_device(cuda, monkeypatch):
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    config = changed(device={"name": "cuda", "fallback": "error"})
    assert prepare_device(config, 1).index == 1
    assert cuda == [1]


def test_accelerator_of_an_unknown_kind_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("hpu"))
    assert device.available_accelerator() is None


def test_available_accelerator_checks_that_the_device_exists(monkeypatch):
    """A torch built for MPS names it on every machine unless check_available=True."""
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available=False: None if check_available else torch.device("mps"),
    )
    assert device.available_accelerator() is None


@pytest.mark.parametrize("requested", ["mps", "cuda", "xpu"])
def test_absent_device_falls_back_to_the_cpu_with_one_warning(requested, no_accelerator, caplog):
    resolved = device.resolve(requested, "cpu")
    assert (resolved.requested, resolved.used) == (requested, "cpu")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"device={requested}" in caplog.text


@pytest.mark.parametrize("requested", ["mps", "cuda", "xpu"])
def test_absent_device_is_refused_where_fallback_is_error(requested, no_accelerator, caplog):
    with pytest.raises(UserError, match=f"device={requested}: not available.*device=cpu"):
        device.resolve(requested, "error")
    assert not caplog.records


def test_the_refusal_names_the_available_accelerator(mps):
    with pytest.raises(UserError, match=r"device=cuda: not available .torch finds mps.*device=mps"):
        device.resolve("cuda", "error")


@pytest.mark.parametrize(("used", "expected"), [("cpu", "cpu"), ("mps", "mps:0"), ("cuda", "cuda:0")])
def test_torch_device_is_the_first_of_its_kind(used, expected):
    assert a_device(used).torch_device == torch.device(expected)


@pytest.mark.parametrize(("used", "calls"), [("cpu", 0), ("mps", 1), ("cuda", 1), ("xpu", 1)])
def test_synchronize_waits_for_accelerators_only(used, calls, monkeypatch):
    called = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: called.append(used))
    a_device(used).synchronize()
    assert len(called) == calls


@pytest.mark.parametrize(("used", "calls"), [("cpu", 0), ("mps", 0), ("cuda", 1), ("xpu", 1)])
def test_peak_memory_is_reset_where_torch_keeps_it(used, calls, monkeypatch):
    called = []
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda: called.append(used))
    a_device(used).reset_peak_memory()
    assert len(called) == calls


@pytest.mark.parametrize(("used", "expected"), [("cpu", None), ("mps", 11), ("cuda", 22), ("xpu", 22)])
def test_peak_memory_is_read_from_the_device(used, expected, monkeypatch):
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 11)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 22)
    assert a_device(used).peak_memory_bytes() == expected


def refused(precision, used):
    try:
        device.check_precision(precision, a_device(used))
    except UserError as error:
        assert str(error).startswith(f"training.precision={precision}: ")
        return True
    return False


def test_current_and_reserved_memory_come_from_torch(monkeypatch):
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 20)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda: 30)
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda: 40)
    bytes_by_kind = {used: (a_device(used).memory_bytes_now(), a_device(used).driver_memory_bytes()) for used in KINDS}
    assert bytes_by_kind == {"cpu": (None, None), "mps": (10, 20), "cuda": (30, 40), "xpu": (30, 40)}


def test_memory_in_use_is_of_all_processes_on_a_gpu_and_of_this_one_on_a_mac(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda: 300)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (200, 1000))
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 100)
    of_cuda, of_mps = (Device("auto", used, "a chip", 1, 1000).memory_use() for used in ("cuda", "mps"))
    assert of_cuda == (0.8, 1000, 300) and of_mps == (0.1, 1000, 100)
    assert a_device("cpu").memory_use() == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("precision", "used", "expected"),
    [
        ("16-mixed", "cpu", True),
        ("bf16-mixed", "cpu", False),
        ("32-true", "cpu", False),
        ("16-mixed", "mps", False),
        ("32-true", "mps", False),
        ("16-mixed", "cuda", False),
        ("32-true", "cuda", False),
    ],
)
def test_float16_is_refused_on_the_cpu_only(precision, used, expected):
    assert refused(precision, used) is expected


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_on_mps_depends_on_macos(has_bfloat16, monkeypatch):
    monkeypatch.setattr(device, "mps_has_bfloat16", lambda: has_bfloat16)
    assert refused("bf16-mixed", "mps") is not has_bfloat16
    assert not refused("32-true", "mps")


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_on_cuda_needs_hardware_that_has_it(has_bfloat16, monkeypatch):
    # Like torch's function: by default it includes emulation, which every NVIDIA GPU has.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16 or including_emulation
    )
    assert refused("bf16-mixed", "cuda") is not has_bfloat16


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (16.0, 8), (8.0, 8), (2.0, 2), (2.9, 2), (0.5, 1)], ids=str)
def test_usable_cores_are_the_affinity_within_the_quota(quota, expected, monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(device, "container_cores", lambda: quota)
    assert device.usable_cores() == expected


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_mps_fallback_is_read_from_the_environment(value, expected, monkeypatch):
    if value is None:
        monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    else:
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", value)
    assert device.mps_fallback() is expected
