"""All that the doctor looks at, gathered in plain values."""

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


def examine(seconds: float, note: Callable[[str], None]) -> dict[str, Any]:
    """Look at everything, the noise last, when what was started for the rest is over.

    Args:
        seconds: how long to probe the noise.
        note: told what comes next.

    Returns:
        machine: what `environment` tells, with num_torch_threads; devices and backends: a `Finding`
        each; noise; checklist: a `Check` each; broken: the names of what must not be used.
    """
    cores, battery = usable_cores(), on_battery()
    machine = to_builtins(environment(cpu_name(), cores))
    del machine["torch"], machine["driver"]  # of a run; here each device says its own
    machine |= {"num_torch_threads": torch.get_num_threads()}
    note("devices: a few training steps on each ...")
    devices = check_devices()
    note("backends: two ranks over each ...")
    backends = check_backends()
    note(f"noise: the same work again and again for {seconds:g} s ...")
    noise = probe(seconds, cores, battery)
    return {
        "machine": machine,
        "devices": [asdict(each) for each in devices],
        "backends": [asdict(each) for each in backends],
        "noise": {
            "grade": noise.quality.grade,
            "reasons": list(noise.quality.reasons),
            "num_threads": noise.num_threads,
            "num_laps": len(noise.lap_times_s),
            "median_s": noise.median_s,
            "p95_over_median": noise.p95_over_median,
            "num_outliers": noise.num_outliers,
            "on_battery": battery,
            **asdict(noise.meanwhile),
            "frequency_drop": noise.frequency_drop,
            "busiest": [{"name": name, "cores": used} for name, used in noise.busiest],
        },
        "checklist": [asdict(each) for each in checks(machine, noise, battery)],
        "broken": [each.title for each in [*devices, *backends] if each.is_broken],
    }


def checks(machine: Mapping[str, Any], noise: Noise, battery: bool | None) -> list[Check]:
    """The whole checklist, of this machine as it is now."""
    free, swap, seen = psutil.virtual_memory(), psutil.swap_memory(), noise.meanwhile
    swapped = seen.num_swapped_pages
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return [
        checklist.other_processes(seen.other_cores, os.cpu_count() or 1, noise.busiest),
        checklist.hypervisor(seen.steal_fraction),
        checklist.power(battery),
        checklist.governor(machine["governors"] or []),
        checklist.frequency(noise.frequency_drop),
        checklist.temperature(seen.temperature_celsius),
        checklist.quota(machine["container"]["num_cores"]),
        checklist.affinity(allowed, psutil.cpu_count()),
        checklist.hyper_threads(psutil.cpu_count(), psutil.cpu_count(logical=False)),
        checklist.memory(free.available, free.total),
        checklist.swap(swap.used, None if swapped is None else swapped / seen.wall_s),
        checklist.thread_variables(os.environ),
        checklist.wait_policy(os.environ),
        checklist.mps_fallback(mps_fallback()),
        checklist.torch_build(torch.version.debug),
    ]
