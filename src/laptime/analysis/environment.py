"""Makes the tables of a run's environment: its machine and its software. Records of older versions contain less."""

from collections.abc import Mapping

from laptime.analysis.load import Run
from laptime.record.schema import Environment
from laptime.text import binary_size, counted, join_nonempty

Rows = list[tuple[str, str]]


def hardware_rows(environment: Environment) -> Rows:
    """Return processor, cores, caches, clock, memory, limits and system by name; empty text: unknown."""
    frequencies = [_gigahertz(hertz) for hertz in (environment.frequency_min_hz, environment.frequency_max_hz)]
    limits = environment.container or {}
    return [
        ("Processor", f"{environment.cpu}{_brackets(environment.machine)}"),
        ("Cores", join_nonempty(_cores(environment))),
        ("Caches", join_nonempty(map(_cache, environment.caches or []))),
        (
            "Clock",
            join_nonempty(
                ["-".join(filter(None, frequencies)), *(f"governor {name}" for name in environment.governors or [])]
            ),
        ),
        ("Memory", _size(environment.memory_bytes)),
        ("Container", join_nonempty([_counted(limits.get("num_cores"), "core"), _size(limits.get("memory_bytes"))])),
        ("System", join_nonempty([environment.os_version, environment.platform])),
    ]


def software_rows(run: Run) -> Rows:
    """Return device, versions, torch's build, settings, code and data by name; empty text: unknown."""
    environment, git, device, data = run.environment, run.record.git, run.device, run.dataset
    packages = [f"{name} {version}" for name, version in environment.packages.items() if version]
    changes = f" with local changes {git.diff_hash or ''}".rstrip() if git.dirty else ""
    is_laptime_training = run.record.is_laptime_training
    checksum = f", checksum {str(data.checksum)[:16]}" if data.checksum or is_laptime_training else ""
    return [
        (
            "Device",
            join_nonempty([device.used, device.name, f"driver {environment.driver}" if environment.driver else ""]),
        ),
        ("Versions", join_nonempty([f"Python {environment.python}", *packages])),
        ("torch", join_nonempty(_torch(environment.torch or {}))),
        ("Variables", join_nonempty(f"{name}={value}" for name, value in (environment.variables or {}).items())),
        ("Code", f"commit {git.commit or 'unknown'}{changes}" if git.commit or is_laptime_training else ""),
        ("Data", f"{data.name}{checksum}"),
    ]


def _cores(environment: Environment) -> list[str]:
    performance, efficiency = environment.num_performance_cores, environment.num_efficiency_cores
    kinds = f" ({performance} performance, {efficiency} efficiency)" if performance and efficiency else ""
    return [
        _counted(environment.num_sockets, "socket"),
        f"{environment.num_physical_cores} physical{kinds}" if environment.num_physical_cores else "",
        f"{environment.num_logical_cores} logical" if environment.num_logical_cores else "",
        f"{environment.num_usable_cores} usable",
    ]


def _cache(cache: Mapping[str, object]) -> str:
    kind = {"data": "d", "instruction": "i"}.get(str(cache.get("type")), "")
    return f"{cache.get('num')} x L{cache.get('level')}{kind} {_size(cache.get('size_bytes'))}"


def _torch(torch: Mapping[str, object]) -> list[str]:
    words = {
        "version": "", "cpu_capability": "", "blas": "BLAS", "mkl": "MKL", "onednn": "oneDNN", "openmp": "OpenMP",
        "cuda": "CUDA", "hip": "HIP", "xpu": "XPU", "cudnn": "cuDNN",
    }  # fmt: skip
    build = [f"{word} {torch[key]}".strip() for key, word in words.items() if torch.get(key) is not None]
    threads = _counted(torch.get("num_threads"), "thread")
    interop = _counted(torch.get("num_interop_threads"), "interop thread")
    return [*build, threads, interop, "debug build" if torch.get("debug") else ""]


def _gigahertz(hertz: float | None) -> str:
    return f"{hertz / 1e9:.2f} GHz" if isinstance(hertz, int | float) else ""


def _size(num_bytes: object) -> str:
    return binary_size(num_bytes) if isinstance(num_bytes, int | float) else ""


def _counted(number: object, word: str) -> str:
    return counted(number, word, "g") if isinstance(number, int | float) else ""


def _brackets(text: str | None) -> str:
    return f" ({text})" if text else ""
