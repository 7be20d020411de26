"""A run's environment in words: its machine, and what ran there. Records of older Laptimes tell less."""

from collections.abc import Mapping
from typing import Any

from laptime.text import binary_size, counted, joined

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
        ("Cores", joined(_cores(there))),
        ("Caches", joined(map(_cache, _items(there, "caches")))),
        (
            "Clock",
            joined(["-".join(filter(None, frequencies)), *(f"governor {name}" for name in _items(there, "governors"))]),
        ),
        ("Memory", _size(there.get("memory_bytes"))),
        (
            "Container",
            joined([_counted(limits.get("num_cores"), "core"), _size(limits.get("memory_bytes"))]),
        ),
        ("System", joined([there.get("os_version"), there.get("platform")])),
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
        ("Device", joined([device["used"], device["name"], _driver(there)])),
        ("Versions", joined([f"Python {there.get('python')}", *packages])),
        ("torch", joined(_torch(_section(there, "torch")))),
        ("Variables", joined(f"{name}={value}" for name, value in _section(there, "variables").items())),
        ("Code", f"commit {git.get('commit') or 'unknown'}{changes}"),
        ("Data", f"{data['name']}, checksum {str(data['checksum'])[:16]}"),
    ]


def _cores(there: Mapping[str, Any]) -> list[str]:
    performance, efficiency = there.get("num_performance_cores"), there.get("num_efficiency_cores")
    kinds = f" ({performance} performance, {efficiency} efficiency)" if performance and efficiency else ""
    return [
        _counted(there.get("num_sockets"), "socket"),
        f"{there['num_physical_cores']} physical{kinds}" if there.get("num_physical_cores") else "",
        f"{there['num_logical_cores']} logical" if there.get("num_logical_cores") else "",
        f"{there['num_usable_cores']} usable",
    ]


def _cache(cache: Any) -> str:
    if not isinstance(cache, Mapping):
        return ""
    kind = {"data": "d", "instruction": "i"}.get(str(cache.get("type")), "")
    return f"{cache.get('num')} x L{cache.get('level')}{kind} {_size(cache.get('size_bytes'))}"


def _torch(torch: Mapping[str, Any]) -> list[str]:
    words = {
        "version": "", "cpu_capability": "", "blas": "BLAS", "mkl": "MKL", "onednn": "oneDNN", "openmp": "OpenMP",
        "cuda": "CUDA", "hip": "HIP", "xpu": "XPU", "cudnn": "cuDNN",
    }  # fmt: skip
    told = [f"{word} {torch[key]}".strip() for key, word in words.items() if torch.get(key) is not None]
    threads = _counted(torch.get("num_threads"), "thread")
    interop = _counted(torch.get("num_interop_threads"), "interop thread")
    return [*told, threads, interop, "debug build" if torch.get("debug") else ""]


def _driver(there: Mapping[str, Any]) -> str:
    return f"driver {there['driver']}" if there.get("driver") else ""


def _gigahertz(hertz: Any) -> str:
    return f"{hertz / 1e9:.2f} GHz" if isinstance(hertz, int | float) else ""


def _size(num_bytes: Any) -> str:
    return binary_size(num_bytes) if isinstance(num_bytes, int | float) else ""


def _counted(number: Any, word: str) -> str:
    return counted(number, word, "g") if isinstance(number, int | float) else ""


def _brackets(text: Any) -> str:
    return f" ({text})" if text else ""


def _section(there: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = there.get(key)
    return section if isinstance(section, Mapping) else {}


def _items(there: Mapping[str, Any], key: str) -> list[Any]:
    items = there.get(key)
    return items if isinstance(items, list) else []
