"""Write the results of a self-test as a JSON file and a Markdown page. Both are safe to share."""

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
    """The tested machine. Nothing in it identifies the machine or its user.

    Attributes:
        kind: cuda, mps or xpu; cpu in a rehearsal.
        device: the device's name.
        architecture: architecture of a CUDA or ROCm device.
        num_devices: number of devices of this kind.
        memory_bytes: memory of one device.
        driver: version of the device's driver.
        cpu: the processor's name.
        num_cores: number of cores that this process may use.
        system: the operating system.
        python: the version of Python.
        torch_build: what torch was built with, as in run.json.
        packages: version of each package; None: not installed.
        commit: commit of Laptime's checkout; None: not a git checkout.
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
    """The accelerator's kind, and the number of devices."""
    from laptime.machine.device import available_accelerator

    kind = available_accelerator()
    return kind, torch.accelerator.device_count() if kind else 0


def machine(kind: str) -> Machine:
    """Describe this machine. A device that can't be initialized has its kind as its name."""
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
    except RuntimeError as error:  # another process holds the device, or the driver has the wrong version
        reason = public(str(error).partition("\n")[0])
        device, driver = Device("auto", kind, f"{kind} ({reason})", 1, None), None
    git = git_state(Path(__file__).resolve().parents[2])
    return Machine(
        kind, device.name, architecture, device.num_devices, device.memory_bytes, driver, cpu_name(), usable_cores(),
        f"{platform.system()} {platform.release()} {platform.machine()}", platform.python_version(), torch_build(),
        environment(cpu_name(), usable_cores()).packages, git.commit, git.dirty,
    )  # fmt: skip


def public(text: str) -> str:
    """A text without secrets, and with placeholders for private names of folders, users and machines.

    Only for free text: a model may have the same name as a user.
    """
    text = mask_text(text)
    for folder, placeholder in _folders().items():
        text = text.replace(folder, placeholder)
    text = re.sub(r"(?<![\w<>:/])/(?:[^\s/:'\"]+/)+([^\s/:'\"]*)", r"<folder>/\1", text)
    for name, placeholder in _names().items():
        text = re.sub(rf"(?<![\w.]){re.escape(name)}(?!\w)", placeholder, text)
    return text


def _folders() -> dict[str, str]:
    """Placeholders by folder, the longest path first."""
    folders = {str(Path(__file__).resolve().parents[2]): "<laptime>", tempfile.gettempdir(): "<tmp>"}
    with suppress(OSError):  # the current folder may have been deleted
        folders[str(Path.cwd())] = "<folder>"
    with suppress(RuntimeError):  # the user has no home folder
        folders[str(Path.home())] = "<home>"
    return {folder: folders[folder] for folder in sorted(folders, key=len, reverse=True) if len(folder) > 1}


def _names() -> dict[str, str]:
    node = platform.node()
    names = dict.fromkeys(filter(None, (node, node.partition(".")[0])), "<machine>")
    with suppress(OSError, KeyError):  # the user is not in the password database
        names[getpass.getuser()] = "<user>"
    return names


def _public(result: Result) -> Result:
    """A part's result with `public` applied to all free text."""
    return replace(
        result,
        why=result.why and public(result.why),
        checks=[replace(check, detail=public(check.detail)) for check in result.checks],
        remarks=[replace(remark, text=public(remark.text)) for remark in result.remarks],
        output=[public(line) for line in result.output],
    )


class CannotWrite(Exception):
    """A file can't be written. The message is the operating system's."""


def make_folder(folder: Path) -> None:
    """Make a folder, and check that files can be written into it.

    Raises:
        CannotWrite: The folder is not writable.
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
        began: start of the test, ISO 8601.
        rehearsal: whether the CPU takes the place of an accelerator.
        complete: whether all selected parts have run.

    Raises:
        CannotWrite: The files can't be written, e.g. because the disk is full.
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
    driver = "" if tested.kind == "cpu" else f", driver {tested.driver or 'unknown'}"
    architecture = f", {tested.architecture}" if tested.architecture else ""
    build = tested.torch_build
    built = [
        f"{name} {build[key]}" for name, key in (("CUDA", "cuda"), ("ROCm", "hip"), ("cuDNN", "cudnn")) if build[key]
    ]
    packages = ", ".join(f"{name} {value}" for name, value in tested.packages.items() if value)
    absent = ", ".join(name for name, value in tested.packages.items() if value is None)
    commit = f"{tested.commit[:12]}{' with local changes' if tested.dirty else ''}" if tested.commit else "unknown"
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
            f"| {result.name} | {result.about} | {result.status} | {result.wall_s:.1f} | {_cell(result.why or '')} |"
            for result in results
        ),
        "",
    ]  # fmt: skip
    for result in results:
        if result.figures or result.checks or result.remarks or result.output:
            lines += [f"## {result.name}", "", *(f"{remark.text}\n" for remark in result.remarks)]
        if result.figures:
            lines += ["| figure | value | unit |", "|---|---:|---|"]
            lines += [f"| {_cell(figure.what)} | {figure.value:.4g} | {figure.unit} |" for figure in result.figures]
            lines.append("")
        if result.checks:
            lines += ["| check | result | detail |", "|---|---|---|"]
            lines += [f"| {_cell(check.what)} | {check.status} | {_cell(check.detail)} |" for check in result.checks]
            lines.append("")
        if result.output:
            lines += ["The last lines of its output:", "", *(f"    {line}" for line in result.output), ""]
    return "\n".join(lines)


_REHEARSAL = (
    "This is a rehearsal: the CPU took the place of the accelerator, with a fake queue and fake memory. It shows "
    "that the script works. Its figures don't describe an accelerator."
)


def summary(results: Sequence[Result]) -> str:
    """The number of parts that passed, failed and were skipped, in one sentence."""
    counts = {status: sum(result.status == status for result in results) for status in ("pass", "fail", "skipped")}
    return f"{counts['pass']} parts passed, {counts['fail']} failed, {counts['skipped']} skipped."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
