"""What is written about a self-test: one JSON file, one Markdown page, both fit to be shown to others."""

import getpass
import json
import platform
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laptime.record import finite
from laptime.secrets import mask_text
from selftest.part import Result

SCHEMA_VERSION = 1


@dataclass
class Machine:
    """What was tested on. Nothing that names the machine or its user.

    Attributes:
        kind: cuda, mps or xpu; cpu in a rehearsal.
        device: the device's own name.
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


def machine(kind: str) -> Machine:
    """Look at this machine; a device that can't be started is named by its kind."""
    from laptime.device import Device, cpu_name, describe, usable_cores
    from laptime.environment import environment, git_state
    from laptime.torch_build import driver_version, torch_build

    try:
        device = describe("auto", kind)
        driver = driver_version(device)
    except RuntimeError as error:  # taken by somebody else, or its driver is another version's
        device, driver = Device("auto", kind, f"{kind} ({str(error).partition(chr(10))[0]})", 1, None), None
    git = git_state(Path(__file__).resolve().parents[2])
    return Machine(
        kind, device.name, device.num_devices, device.memory_bytes, driver, cpu_name(), usable_cores(),
        f"{platform.system()} {platform.release()} {platform.machine()}", platform.python_version(), torch_build(),
        environment(cpu_name(), usable_cores())["packages"], git["commit"], git["dirty"],
    )  # fmt: skip


def without_names(text: str) -> str:
    """Without secrets, and without folders, users and machines that only their owner knows."""
    hidden = {
        str(Path(__file__).resolve().parents[2]): "<laptime>",
        tempfile.gettempdir(): "<tmp>",
        str(Path.cwd()): "<folder>",
        str(Path.home()): "<home>",
        platform.node(): "<machine>",
    }
    with suppress(OSError, KeyError):  # the system's files name no such user
        hidden[getpass.getuser()] = "<user>"
    for name in sorted((name for name in hidden if len(name) > 3), key=len, reverse=True):
        text = text.replace(name, hidden[name])
    return mask_text(text)


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_names(item) for item in value]
    return without_names(value) if isinstance(value, str) else value


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
    content = {
        "schema_version": SCHEMA_VERSION,
        "began": began,
        "rehearsal": rehearsal,
        "complete": complete,
        "machine": asdict(tested),
        "parts": [asdict(result) for result in results],
    }
    text = json.dumps(_without_names(finite(content)), indent=2, allow_nan=False)
    page = _page(began, rehearsal, tested, results, complete)
    try:
        (folder / "accelerator.json").write_text(text + "\n", encoding="utf-8")
        (folder / "accelerator.md").write_text(without_names(page), encoding="utf-8")
    except OSError as error:
        raise CannotWrite(error.strerror) from error


def _page(began: str, rehearsal: bool, tested: Machine, results: Sequence[Result], complete: bool) -> str:
    memory = f", {tested.memory_bytes / 1e9:.0f} GB" if tested.memory_bytes else ""
    number = f"{tested.num_devices} x " if tested.num_devices > 1 else ""
    kind = "rehearsal on the CPU" if rehearsal else tested.kind
    packages = ", ".join(f"{name} {value}" for name, value in tested.packages.items() if value)
    absent = ", ".join(name for name, value in tested.packages.items() if value is None)
    commit = f"{tested.commit[:12]}{' and changes' if tested.dirty else ''}" if tested.commit else "not a checkout"
    lines = [
        f"# Laptime on {number}{tested.device} ({kind})", "",
        f"{began[:16].replace('T', ' ')} UTC. {_verdict(results)}{'' if complete else ' It was ended early.'}", "",
        f"- device: {number}{tested.device}{memory}, driver {tested.driver or 'not known'}",
        f"- processor: {tested.cpu}, {tested.num_cores} usable cores",
        f"- system: {tested.system}, Python {tested.python}",
        f"- packages: {packages}{f'; not installed: {absent}' if absent else ''}",
        f"- commit: {commit}", "",
        "| part | what it tries | result | seconds | why |", "|---|---|---|---:|---|",
        *(
            f"| {each.name} | {each.about} | {each.status} | {each.wall_s:.1f} | {_cell(each.why or '')} |"
            for each in results
        ),
        "",
    ]  # fmt: skip
    for result in results:
        if result.figures or result.checks or result.remarks:
            lines += [f"## {result.name}", "", *(f"{remark.text}\n" for remark in result.remarks)]
        if result.figures:
            lines += ["| figure | value | unit |", "|---|---:|---|"]
            lines += [f"| {_cell(each.what)} | {each.value:.4g} | {each.unit} |" for each in result.figures] + [""]
        if result.checks:
            lines += ["| check | result | detail |", "|---|---|---|"]
            lines += [f"| {_cell(each.what)} | {each.status} | {_cell(each.detail)} |" for each in result.checks] + [""]
    return "\n".join(lines)


def _verdict(results: Sequence[Result]) -> str:
    counts = {status: sum(result.status == status for result in results) for status in ("pass", "fail", "skipped")}
    return f"{counts['pass']} parts passed, {counts['fail']} failed, {counts['skipped']} skipped."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
