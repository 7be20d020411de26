"""Runs all checks of the doctor and collects the results as plain values."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import psutil
import torch
from msgspec import to_builtins

from laptime.doctor import checklist
from laptime.doctor.checklist import Check
from laptime.doctor.groups import check_backends
from laptime.doctor.probe import Noise, probe
from laptime.doctor.steps import check_devices
from laptime.machine.counters import on_battery
from laptime.machine.device import cpu_name, mps_fallback, usable_cores
from laptime.machine.environment import environment
from laptime.machine.hardware import allowed_cores


def examine(seconds: float, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Run all checks. The noise probe comes last, after the processes of the other checks have ended.

    Args:
        seconds: duration of the noise probe.
        on_progress: called with a description of each check before it starts.

    Returns:
        A dictionary: `machine` has the `environment` and num_torch_threads; `devices` and `backends` have a `Finding`
        for each; `noise` has the result of the probe; `checklist` has each `Check`; `broken` has the names of devices
        and backends that must not be used.
    """
    cores, battery = usable_cores(), on_battery()
    machine = to_builtins(environment(cpu_name(), cores))
    del machine["torch"], machine["driver"]  # the checks of devices report these
    machine |= {"num_torch_threads": torch.get_num_threads()}
    on_progress("devices: training a few steps on each ...")
    devices = check_devices()
    on_progress("backends: starting two ranks for each ...")
    backends = check_backends()
    on_progress(f"noise: repeating the same work for {seconds:g} s ...")
    noise = probe(seconds, cores, battery)
    return {
        "machine": machine,
        "devices": [asdict(finding) for finding in devices],
        "backends": [asdict(finding) for finding in backends],
        "noise": {
            "grade": noise.quality.grade,
            "reasons": list(noise.quality.reasons),
            "num_threads": noise.num_threads,
            "num_laps": len(noise.lap_times_s),
            "median_s": noise.median_s,
            "p95_over_median": noise.p95_over_median,
            "num_outliers": noise.num_outliers,
            "on_battery": battery,
            **asdict(noise.counters),
            "frequency_drop": noise.frequency_drop,
            "busiest": [{"name": name, "cores": used} for name, used in noise.busiest],
        },
        "checklist": [asdict(check) for check in checks(machine, noise, battery)],
        "broken": [finding.title for finding in [*devices, *backends] if finding.is_broken],
    }


def checks(machine: Mapping[str, Any], noise: Noise, battery: bool | None) -> list[Check]:
    """Return the checklist for this machine."""
    free, swap, counted = psutil.virtual_memory(), psutil.swap_memory(), noise.counters
    swapped = counted.num_swapped_pages
    allowed = len(allowed_cores()) or None
    return [
        checklist.other_processes(counted.other_cores, os.cpu_count() or 1, noise.busiest),
        checklist.hypervisor(counted.steal_fraction),
        checklist.power(battery),
        checklist.governor(machine["governors"] or []),
        checklist.frequency(noise.frequency_drop),
        checklist.temperature(counted.temperature_celsius),
        checklist.quota(machine["container"]["num_cores"]),
        checklist.affinity(allowed, psutil.cpu_count()),
        checklist.hyper_threads(psutil.cpu_count(), psutil.cpu_count(logical=False)),
        checklist.memory(free.available, free.total),
        checklist.swap(swap.used, None if swapped is None else swapped / counted.wall_s),
        checklist.thread_variables(os.environ),
        checklist.wait_policy(os.environ),
        checklist.mps_fallback(mps_fallback()),
        checklist.torch_build(torch.version.debug),
    ]
