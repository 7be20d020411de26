"""A run's environment in words: its machine, and what ran there. Records of older Laptimes tell less."""

from collections.abc import Iterable, Mapping
from typing import Any

Rows = list[tuple[str, str]]


def of_machine(record: Mapping[str, Any]) -> Rows:
    """Processor, cores, caches, clock, memory, limits and system by name; an empty text where it isn't known.

    Args:
        record: run.json of a completed run.
    """
    there = record["environment"]
    frequencies = [_gigahertz(there.get(f"frequency_{end}_hz")) for end in ("min", "max")]
    limits = _section(there, "container")
    return [
        ("Processor", f"{there['cpu']}{_brackets(there.get('machine'))}"),
        ("Cores", _joined(_cores(there))),
        ("Caches", _joined(map(_cache, _items(there, "caches")))),
        (
            "Clock",
            _joined(
                ["-".join(filter(None, frequencies)), *(f"governor {name}" for name in _items(there, "governors"))]
            ),
        ),
        ("Memory", _size(there.get("memory_bytes"))),
        (
            "Container",
            _joined([_counted(limits.get("num_cores"), "core"), _size(limits.get("memory_bytes"))]),
        ),
        ("System", _joined([there.get("os_version"), there.get("platform")])),
    ]


def of_software(record: Mapping[str, Any]) -> Rows:
    """Device, versions, torch's build, settings, code and data by name; an empty text where it isn't known.

    Args:
        record: run.json of a completed run.
    """
    there, git, device, data = (record[section] for section in ("environment", "git", "device", "dataset"))
    packages = [f"{name} {version}" for name, version in there["packages"].items() if version]
    changes = f" with local changes {git.get('diff_hash') or ''}".rstrip() if git.get("dirty") else ""
    return [
        ("Device", _joined([device["used"], device["name"], _driver(there)])),
        ("Versions", _joined([f"Python {there.get('python')}", *packages])),
        ("torch", _joined(_torch(_section(there, "torch")))),
        ("Variables", _joined(f"{name}={value}" for name, value in _section(there, "variables").items())),
        ("Code", f"commit {git.get('commit') or 'unknown'}{changes}"),
        ("Data", f"{data['name']}, checksum {str(data['checksum'])[:16]}"),
    ]


def _cores(there: Mapping[str, object]) -> list[str]:
    performance, efficiency = there.get("num_performance_cores"), there.get("num_efficiency_cores")
    kinds = f" ({performance} performance, {efficiency} efficiency)" if performance and efficiency else ""
    return [
        _counted(there.get("num_sockets"), "socket"),
        f"{there['num_physical_cores']} physical{kinds}" if there.get("num_physical_cores") else "",
        f"{there['num_logical_cores']} logical" if there.get("num_logical_cores") else "",
        f"{there['num_usable_cores']} usable",
    ]


def _cache(cache: object) -> str:
    if not isinstance(cache, Mapping):
        return ""
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


def _driver(there: Mapping[str, object]) -> str:
    return f"driver {there['driver']}" if there.get("driver") else ""


def _gigahertz(hertz: object) -> str:
    return f"{hertz / 1e9:.2f} GHz" if isinstance(hertz, int | float) else ""


def _size(num_bytes: object) -> str:
    """In binary units, as memory and caches come: 48 KiB."""
    if not isinstance(num_bytes, int | float):
        return ""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 2**10:.3g} KiB"


def _counted(number: object, word: str) -> str:
    return f"{number:g} {word}{'' if number == 1 else 's'}" if isinstance(number, int | float) else ""


def _brackets(text: object) -> str:
    return f" ({text})" if text else ""


def _joined(parts: Iterable[object]) -> str:
    return ", ".join(str(part) for part in parts if part)


def _section(there: Mapping[str, object], key: str) -> Mapping[str, object]:
    section = there.get(key)
    return section if isinstance(section, Mapping) else {}


def _items(there: Mapping[str, object], key: str) -> list[object]:
    items = there.get(key)
    return items if isinstance(items, list) else []
