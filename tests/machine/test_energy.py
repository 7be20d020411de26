"""Joules that the real Zeus reads from faked processor counters, and the reasons for missing ones."""

import importlib
import importlib.util
import os
import subprocess
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tests.support.settings import TINY

import laptime
from laptime.machine import energy
from laptime.machine.device import Device
from laptime.machine.energy import EnergyMeter

CPU = Device("cpu", "cpu", "made up", 1, None)


def set_counter(package: Path, joules: float) -> None:
    (package / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The counters of two processors; the first also has one for its memory. Zeus finds no others."""
    pytest.importorskip("zeus")
    rapl = importlib.import_module("zeus.device.cpu.rapl")
    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path))
    monkeypatch.setattr(energy, "_RAPL", (tmp_path,))
    monkeypatch.setattr(importlib.import_module("zeus.device.cpu"), "_cpus", None)
    rapl.rapl_is_available.cache_clear()
    folders = [tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1", tmp_path / "intel-rapl:0" / "intel-rapl:0:0"]
    for folder, name in zip(folders, ("package-0", "package-1", "dram"), strict=True):
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
        set_counter(folder, 100)
    yield folders
    rapl.rapl_is_available.cache_clear()


def test_joules_of_all_processors_and_their_memory(packages):
    meter = EnergyMeter(CPU)
    assert meter.missing is None
    meter.begin()
    for package, joules in zip(packages, (110, 105, 101), strict=True):
        set_counter(package, joules)
    assert meter.end() == pytest.approx(16)


@pytest.mark.parametrize("wrapped", [0, 2], ids=["package", "memory"])
def test_a_counter_that_overflowed(wrapped, packages):
    meter = EnergyMeter(CPU)
    meter.begin()
    set_counter(packages[wrapped], 10)  # from 100 to its maximum 262,143.32885, then from 0
    assert meter.end() == pytest.approx(262_143.32885 - 90)


def test_no_process_is_started(packages, monkeypatch):
    started = []

    def note(*arguments, **keywords):
        started.append(arguments)
        raise OSError("no process may be started")

    monkeypatch.setattr(BaseProcess, "start", note)
    monkeypatch.setattr(subprocess.Popen, "_execute_child", note)
    monkeypatch.setattr(os, "fork", note)
    meter = EnergyMeter(CPU)
    meter.begin()
    meter.end()
    assert started == []


def test_a_measurement_that_has_not_ended_is_dropped(packages):
    meter = EnergyMeter(CPU)
    meter.begin()
    set_counter(packages[0], 150)
    meter.begin()
    set_counter(packages[0], 152)
    assert meter.end() == pytest.approx(2)


def test_without_a_counter_the_reason_is_recorded(work_folder, monkeypatch):
    monkeypatch.setattr(energy, "_RAPL", (Path("nowhere"),))
    monkeypatch.delenv("ZEUSD_SOCK_PATH", raising=False)
    resources = laptime.run([*TINY, "training.epochs=1"])["resources"]
    assert resources["energy_joules"] is None and resources["energy_joules_per_1000_samples"] is None
    assert resources["energy_missing"] in (energy.NO_COUNTER, energy.NOT_INSTALLED)


def test_without_zeus_the_reason_names_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    meter = EnergyMeter(CPU)
    assert meter.missing == 'needs Zeus: pip install "laptime[energy]"'
    meter.begin()
    assert meter.end() is None


def test_a_run_records_joules_per_epoch_and_per_1000_samples(work_folder, packages, monkeypatch):
    begin = EnergyMeter.begin

    def spend(meter: EnergyMeter) -> None:
        begin(meter)
        set_counter(packages[1], float((packages[1] / "energy_uj").read_text()) / 1e6 + 40)

    monkeypatch.setattr(EnergyMeter, "begin", spend)  # 40 J while each epoch is trained
    record = laptime.run([*TINY, "training.epochs=3", "logger=tensorboard", "hydra.run.dir=here"])
    assert record["resources"]["energy_joules"] == pytest.approx(40)
    assert record["resources"]["energy_joules_per_1000_samples"] == pytest.approx(40 / 0.24)  # of 240 samples
    assert record["resources"]["energy_missing"] is None
    event_accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator("here/tensorboard")
    events.Reload()
    assert [event.value for event in events.Scalars("energy/joules")] == pytest.approx([40, 40, 40])
