"""A run's environment in words: its machine, and what ran there. Records of older Laptimes tell less."""

from collections.abc import Mapping

from laptime.analysis.load import Run
from laptime.record.schema import Environment
from laptime.text import binary_size, counted, join_nonempty

Rows = list[tuple[str, str]]


def hardware_rows(there: Environment) -> Rows:
    """Processor, cores, caches, clock, memory, limits and system by name; an empty text where it isn't known."""
    frequencies = [_gigahertz(hertz) for hertz in (there.frequency_min_hz, there.frequency_max_hz)]
    limits = there.container or {}
    return [
        ("Processor", f"{there.cpu}{_brackets(there.machine)}"),
        ("Cores", join_nonempty(_cores(there))),
        ("Caches", join_nonempty(map(_cache, there.caches or []))),
        (
            "Clock",
            join_nonempty(
                ["-".join(filter(None, frequencies)), *(f"governor {name}" for name in there.governors or [])]
            ),
        ),
        ("Memory", _size(there.memory_bytes)),
        ("Container", join_nonempty([_counted(limits.get("num_cores"), "core"), _size(limits.get("memory_bytes"))])),
        ("System", join_nonempty([there.os_version, there.platform])),
    ]


def software_rows(run: Run) -> Rows:
    """Device, versions, torch's build, settings, code and data by name; an empty text where it isn't known."""
    there, git, device, data = run.environment, run.record.git, run.device, run.dataset
    packages = [f"{name} {version}" for name, version in there.packages.items() if version]
    changes = f" with local changes {git.diff_hash or ''}".rstrip() if git.dirty else ""
    is_own = run.record.is_laptime_training
    checksum = f", checksum {str(data.checksum)[:16]}" if data.checksum or is_own else ""
    return [
        ("Device", join_nonempty([device.used, device.name, f"driver {there.driver}" if there.driver else ""])),
        ("Versions", join_nonempty([f"Python {there.python}", *packages])),
        ("torch", join_nonempty(_torch(there.torch or {}))),
        ("Variables", join_nonempty(f"{name}={value}" for name, value in (there.variables or {}).items())),
        ("Code", f"commit {git.commit or 'unknown'}{changes}" if git.commit or is_own else ""),
        ("Data", f"{data.name}{checksum}"),
    ]


def _cores(there: Environment) -> list[str]:
    performance, efficiency = there.num_performance_cores, there.num_efficiency_cores
    kinds = f" ({performance} performance, {efficiency} efficiency)" if performance and efficiency else ""
    return [
        _counted(there.num_sockets, "socket"),
        f"{there.num_physical_cores} physical{kinds}" if there.num_physical_cores else "",
        f"{there.num_logical_cores} logical" if there.num_logical_cores else "",
        f"{there.num_usable_cores} usable",
    ]


def _cache(cache: Mapping[str, object]) -> str:
    kind = {"data": "d", "instruction": "i"}.get(str(cache.get("type")), "")
    return f"{cache.get('num')} x L{cache.get('level')}{kind} {_size(cache.get('size_bytes'))}"


def _torch(torch: Mapping[str, object]) -> list[str]:
    words = {
        "version": "", "cpu_capability": "", "blas": "BLAS", "mkl": "MKL", "onednn": "oneDNN", "openmp": "OpenMP",
        "cuda": "CUDA", "hip": "HIP", "xpu": "XPU", "cudnn": "cuDNN",
    }  # fmt: skip
    told = [f"{word} {torch[key]}".strip() for key, word in words.items() if torch.get(key) is not None]
    threads = _counted(torch.get("num_threads"), "thread")
    interop = _counted(torch.get("num_interop_threads"), "interop thread")
    return [*told, threads, interop, "debug build" if torch.get("debug") else ""]


def _gigahertz(hertz: float | None) -> str:
    return f"{hertz / 1e9:.2f} GHz" if isinstance(hertz, int | float) else ""


def _size(num_bytes: object) -> str:
    return binary_size(num_bytes) if isinstance(num_bytes, int | float) else ""


def _counted(number: object, word: str) -> str:
    return counted(number, word, "g") if isinstance(number, int | float) else ""


def _brackets(text: str | None) -> str:
    return f" ({text})" if text else ""
