"""Rules that say what to change before measuring. They take plain values; None: this machine can't report the value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laptime.text import byte_size

# Thresholds of the probe's values. A run that exceeds one of the first three loses grade A.
_OTHER_FRACTION, _STEAL_FRACTION, _FREQUENCY_DROP = 0.05, 0.01, 0.10
_SWAPPED_PER_S = 1.0
_MIN_FREE_FRACTION = 0.10
# Most processors slow down between 95 and 105 degrees (Intel and AMD data sheets: TjMax).
_HOT_CELSIUS = 90.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_THREAD_LIMIT")


@dataclass(frozen=True)
class Check:
    """One line of the checklist.

    Attributes:
        name: what was checked.
        ok: whether the check passed; None: this machine can't report the value.
        text: the result; if the check failed, also what to do.
    """

    name: str
    ok: bool | None
    text: str


def _unknown(name: str) -> Check:
    return Check(name, None, "not known here")


def other_processes(other_cores: float | None, num_cores: int, busiest: Sequence[tuple[str, float]]) -> Check:
    """Args: other_cores: cores that other processes kept busy; num_cores: all cores of the machine; busiest: names and
    used cores of other processes, the busiest first."""
    if other_cores is None:
        return _unknown("other processes")
    result = f"they kept {other_cores:.1f} of the machine's {num_cores} cores busy"
    if other_cores / num_cores < _OTHER_FRACTION:
        return Check("other processes", True, result)
    busiest_name = f"; the busiest is {busiest[0][0]}" if busiest else ""
    return Check("other processes", False, f"{result}{busiest_name}. End them or wait")


def hypervisor(steal_fraction: float | None) -> Check:
    """Args: steal_fraction: the fraction of CPU time that the hypervisor gave to other virtual machines."""
    if steal_fraction is None:
        return _unknown("hypervisor")
    result = f"CPU steal {steal_fraction:.1%}"
    if steal_fraction < _STEAL_FRACTION:
        return Check("hypervisor", True, result)
    return Check("hypervisor", False, f"{result}. Measure at another time or on a dedicated machine")


def power(on_battery: bool | None) -> Check:
    if on_battery is None:
        return Check("power", None, "no battery, or not known here")
    if on_battery:
        return Check("power", False, "on battery, which slows many processors down. Plug the machine in")
    return Check("power", True, "plugged in")


def governor(governors: Sequence[str]) -> Check:
    """Args: governors: the frequency governor of each core, as Linux names it."""
    kinds = sorted(set(governors))
    if not kinds:
        return _unknown("CPU governor")
    if kinds == ["performance"]:
        return Check("CPU governor", True, "performance")
    return Check("CPU governor", False, f"{', '.join(kinds)}. Use: sudo cpupower frequency-set -g performance")


def frequency(drop: float | None) -> Check:
    """Args: drop: how far the frequency fell during the probe, as a fraction of its highest value."""
    if drop is None:
        return _unknown("CPU frequency")
    if drop < _FREQUENCY_DROP:
        return Check("CPU frequency", True, f"varied by {drop:.0%} during the probe")
    advice = "Let the machine cool, warm up longer (measure.warmup_epochs), or switch turbo off"
    return Check("CPU frequency", False, f"fell by {drop:.0%} during the probe. {advice}")


def temperature(celsius: float | None) -> Check:
    if celsius is None:
        return _unknown("temperature")
    if celsius < _HOT_CELSIUS:
        return Check("temperature", True, f"{celsius:.0f} °C at the end of the probe")
    return Check("temperature", False, f"{celsius:.0f} °C, at which most CPUs throttle. Let the machine cool")


def quota(cores: float | None) -> Check:
    """Args: cores: the container's CPU quota; None: no quota."""
    if cores is None:
        return Check("container quota", True, "none")
    if cores >= 1 and cores == int(cores):
        return Check("container quota", True, f"{cores:.0f} whole cores")
    whole = max(1, int(cores))
    return Check(
        "container quota",
        False,
        f"{cores:.2f} cores: the kernel pauses threads that have used the quota up. Use --cpus={whole} or more",
    )


def affinity(num_allowed: int | None, num_logical: int | None) -> Check:
    """Args: num_allowed: cores in this process's affinity; num_logical: all logical cores."""
    if num_allowed is None or num_logical is None:
        return _unknown("affinity")
    if num_allowed >= num_logical:
        return Check("affinity", True, "all cores")
    result = f"{num_allowed} of {num_logical} cores (taskset, a cpuset or a scheduler)"
    return Check("affinity", False, f"{result}. Make sure that no other process uses them")


def hyper_threads(num_logical: int | None, num_physical: int | None) -> Check:
    if not num_logical or not num_physical:
        return _unknown("hyper-threads")
    if num_logical <= num_physical:
        return Check("hyper-threads", True, "none")
    advice = (
        f"Use one thread per physical core: strategy.threads_per_rank={num_physical} divided by the number of ranks"
    )
    return Check("hyper-threads", False, f"{num_logical} logical on {num_physical} physical cores. {advice}")


def memory(available_bytes: int, total_bytes: int) -> Check:
    result = f"{available_bytes / 1e9:.1f} of {byte_size(total_bytes, 'GB')} are free"
    if available_bytes >= _MIN_FREE_FRACTION * total_bytes:
        return Check("memory", True, result)
    return Check("memory", False, f"{result}. End the processes that use most of it")


def swap(used_bytes: int, swapped_per_s: float | None) -> Check:
    """Args: used_bytes: swap in use; swapped_per_s: pages per second that were swapped in or out during the probe."""
    used = f"{byte_size(used_bytes, 'GB')} in use"
    if swapped_per_s is not None and swapped_per_s >= _SWAPPED_PER_S:
        return Check("swap", False, f"{used}, {swapped_per_s:.0f} pages/s swapped. Free some memory")
    if not used_bytes:
        return Check("swap", True, "not in use")
    if swapped_per_s is None:
        return Check("swap", None, f"{used}; swapping rate not known here")
    return Check("swap", True, f"{used}, but no swapping during the probe")


def thread_variables(variables: Mapping[str, str]) -> Check:
    variables_set = [f"{name}={variables[name]}" for name in _THREAD_VARIABLES if variables.get(name)]
    if not variables_set:
        return Check("thread variables", True, "none set")
    return Check("thread variables", False, f"{', '.join(variables_set)}. Unset them and use strategy.threads_per_rank")


def wait_policy(variables: Mapping[str, str]) -> Check:
    value = variables.get("OMP_WAIT_POLICY")
    if not value:
        return Check("OMP_WAIT_POLICY", True, "not set")
    return Check("OMP_WAIT_POLICY", False, f"{value}: affects all CPU timings. Unset it, or set it for all runs")


def mps_fallback(on: bool) -> Check:
    if not on:
        return Check("MPS fallback", True, "off")
    result = "operators that MPS lacks run on the CPU, slowly and without a warning"
    return Check("MPS fallback", False, f"{result}. Unset PYTORCH_ENABLE_MPS_FALLBACK")


def torch_build(debug: bool | None) -> Check:
    if debug is None:
        return _unknown("build of torch")
    if debug:
        return Check("build of torch", False, "a debug build, which is slow. Install a release")
    return Check("build of torch", True, "a release")
