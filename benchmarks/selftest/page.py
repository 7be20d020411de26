"""What is written about a self-test: one JSON file, one Markdown page, both fit to be shown to others."""

import getpass
import json
import platform
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from laptime.record.files import finite, write_atomically
from laptime.record.masking import mask_text
from selftest.part import Result

SCHEMA_VERSION = 1


@dataclass
class Machine:
    """What was tested on. Nothing that names the machine or its user.

    Attributes:
        kind: cuda, mps or xpu; cpu in a rehearsal.
        device: the device's own name.
        architecture: of a CUDA or ROCm device.
        num_devices: how many of them there are.
        memory_bytes: of one of them.
        driver: its driver's version.
        cpu: the processor's name.
        num_cores: that this process may use.
        system: the operating system.
        python: the version of Python.
        torch_build: what torch was built with, as in run.json.
        packages: versions; None: not installed.
        commit: of Laptime's checkout; None: it is none.
        dirty: whether files differ from the commit.
    """

    kind: str
    device: str
    architecture: str | None
    num_devices: int
    memory_bytes: int | None
    driver: str | None
    cpu: str
    num_cores: int
    system: str
    python: str
    torch_build: dict[str, Any]
    packages: dict[str, str | None]
    commit: str | None
    dirty: bool | None


def accelerator() -> tuple[str | None, int]:
    """The accelerator's kind and how many of it there are."""
    from laptime.machine.device import available_accelerator

    kind = available_accelerator()
    return kind, torch.accelerator.device_count() if kind else 0


def machine(kind: str) -> Machine:
    """Look at this machine; a device that can't be started is named by its kind."""
    from laptime.machine.device import Device, cpu_name, describe, usable_cores
    from laptime.machine.environment import environment, git_state
    from laptime.machine.torch_build import driver_version, torch_build

    architecture = None
    try:
        device = describe("auto", kind)
        driver = driver_version(device)
        if kind == "cuda":
            properties = torch.cuda.get_device_properties(0)
            architecture = (
                getattr(properties, "gcnArchName", "") or f"compute capability {properties.major}.{properties.minor}"
            )
    except RuntimeError as error:  # taken by somebody else, or its driver is another version's
        reason = public(str(error).partition("\n")[0])
        device, driver = Device("auto", kind, f"{kind} ({reason})", 1, None), None
    git = git_state(Path(__file__).resolve().parents[2])
    return Machine(
        kind, device.name, architecture, device.num_devices, device.memory_bytes, driver, cpu_name(), usable_cores(),
        f"{platform.system()} {platform.release()} {platform.machine()}", platform.python_version(), torch_build(),
        environment(cpu_name(), usable_cores()).packages, git.commit, git.dirty,
    )  # fmt: skip


def public(text: str) -> str:
    """A text without secrets, and without folders, users and machines that only their owner knows.

    For free text only: a user may be called like a model.
    """
    text = mask_text(text)
    for place, name in _places().items():
        text = text.replace(place, name)
    text = re.sub(r"(?<![\w<>:/])/(?:[^\s/:'\"]+/)+([^\s/:'\"]*)", r"<folder>/\1", text)
    for known, name in _names().items():
        text = re.sub(rf"(?<![\w.]){re.escape(known)}(?!\w)", name, text)
    return text


def _places() -> dict[str, str]:
    """Folders that may be named, longest first."""
    places = {str(Path(__file__).resolve().parents[2]): "<laptime>", tempfile.gettempdir(): "<tmp>"}
    with suppress(OSError):  # the current folder may be gone
        places[str(Path.cwd())] = "<folder>"
    with suppress(RuntimeError):  # a user without a home
        places[str(Path.home())] = "<home>"
    return {place: places[place] for place in sorted(places, key=len, reverse=True) if len(place) > 1}


def _names() -> dict[str, str]:
    node = platform.node()
    names = dict.fromkeys(filter(None, (node, node.partition(".")[0])), "<machine>")
    with suppress(OSError, KeyError):  # the system's files name no such user
        names[getpass.getuser()] = "<user>"
    return names


def _public(result: Result) -> Result:
    """A part's result of which all free text may be shown."""
    return replace(
        result,
        why=result.why and public(result.why),
        checks=[replace(each, detail=public(each.detail)) for each in result.checks],
        remarks=[replace(each, text=public(each.text)) for each in result.remarks],
        output=[public(line) for line in result.output],
    )


class CannotWrite(Exception):
    """The system refuses to write; the message is its own."""


def make_folder(folder: Path) -> None:
    """Make a folder, and see whether files can be written into it.

    Raises:
        CannotWrite: they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CannotWrite(error.strerror) from error


def write(
    folder: Path, began: str, rehearsal: bool, tested: Machine, results: Sequence[Result], complete: bool
) -> None:
    """Write accelerator.json and accelerator.md into a folder.

    Args:
        began: when, ISO 8601.
        rehearsal: whether the CPU stood in for an accelerator.
        complete: whether all parts that were asked for have been tried.

    Raises:
        CannotWrite: the disk is full, for example.
    """
    results = [_public(result) for result in results]
    content = {
        "schema_version": SCHEMA_VERSION,
        "began": began,
        "rehearsal": rehearsal,
        "complete": complete,
        "machine": asdict(tested),
        "parts": [asdict(result) for result in results],
    }
    text = json.dumps(finite(content), indent=2, allow_nan=False) + "\n"
    try:
        write_atomically(folder / "accelerator.json", text.encode())
        write_atomically(folder / "accelerator.md", _page(began, rehearsal, tested, results, complete).encode())
    except OSError as error:
        raise CannotWrite(error.strerror) from error


def _page(began: str, rehearsal: bool, tested: Machine, results: Sequence[Result], complete: bool) -> str:
    number = f"{tested.num_devices} x " if tested.num_devices > 1 else ""
    memory = f", {tested.memory_bytes / 1e9:.0f} GB" if tested.memory_bytes else ""
    driver = "" if tested.kind == "cpu" else f", driver {tested.driver or 'not known'}"
    architecture = f", {tested.architecture}" if tested.architecture else ""
    build = tested.torch_build
    built = [
        f"{name} {build[key]}" for name, key in (("CUDA", "cuda"), ("ROCm", "hip"), ("cuDNN", "cudnn")) if build[key]
    ]
    packages = ", ".join(f"{name} {value}" for name, value in tested.packages.items() if value)
    absent = ", ".join(name for name, value in tested.packages.items() if value is None)
    commit = f"{tested.commit[:12]}{' with local changes' if tested.dirty else ''}" if tested.commit else "not known"
    lines = [
        f"# Laptime on {number}{tested.device} ({'rehearsal' if rehearsal else tested.kind})", "",
        f"{began[:16].replace('T', ' ')} UTC. {summary(results)}{'' if complete else ' It was ended early.'}", "",
        *([_REHEARSAL, ""] if rehearsal else []),
        f"- device: {number}{tested.device}{architecture}{memory}{driver}",
        f"- processor: {tested.cpu}, {tested.num_cores} usable cores",
        f"- system: {tested.system}, Python {tested.python}",
        f"- torch {build['version']}, built with {', '.join(built) or 'neither CUDA nor ROCm'}",
        f"- packages: {packages}{f'; not installed: {absent}' if absent else ''}",
        f"- commit: {commit}", "",
        "| part | what it tries | result | seconds | note |", "|---|---|---|---:|---|",
        *(
            f"| {each.name} | {each.about} | {each.status} | {each.wall_s:.1f} | {_cell(each.why or '')} |"
            for each in results
        ),
        "",
    ]  # fmt: skip
    for result in results:
        if result.figures or result.checks or result.remarks or result.output:
            lines += [f"## {result.name}", "", *(f"{remark.text}\n" for remark in result.remarks)]
        if result.figures:
            lines += ["| figure | value | unit |", "|---|---:|---|"]
            lines += [f"| {_cell(each.what)} | {each.value:.4g} | {each.unit} |" for each in result.figures] + [""]
        if result.checks:
            lines += ["| check | result | detail |", "|---|---|---|"]
            lines += [f"| {_cell(each.what)} | {each.status} | {_cell(each.detail)} |" for each in result.checks] + [""]
        if result.output:
            lines += ["The last lines that it printed:", "", *(f"    {line}" for line in result.output), ""]
    return "\n".join(lines)


_REHEARSAL = (
    "This is a rehearsal: the CPU stood in for the accelerator, and a queue and memory were faked. It shows that the "
    "script works; its figures say nothing of an accelerator."
)


def summary(results: Sequence[Result]) -> str:
    """How many parts ended in which way, in one sentence."""
    counts = {status: sum(result.status == status for result in results) for status in ("pass", "fail", "skipped")}
    return f"{counts['pass']} parts passed, {counts['fail']} failed, {counts['skipped']} skipped."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
