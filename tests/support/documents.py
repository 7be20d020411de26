"""The commands that README and docs/ show: taken from their text, and split into words by a shell."""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PROGRAMS = "python|laptime|torchrun|srun|tensorboard|pip|pytest|mlflow|wandb"
# How the first line of a block of commands begins; other blocks are Python, files, or what was printed.
_FIRST = re.compile(rf"\$ |[!%]|#SBATCH|(?:\w+=\S* )?(?:{PROGRAMS}) |\w+=\$\(")
# A shell that finds no program at all: each command notes its words in a file of its own, because the commands of a
# pipeline run at the same time, and prints a word.
_NOTING = """\
command_not_found_handle() { printf '%s\\0' "$@" > "$NOTES/$LINE-$BASHPID"; echo printed; }
"""
# What a batch system or a user's shell would have set.
_VARIABLES = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node[1-2]"}


@dataclass(frozen=True)
class Command:
    """A line of a document that is to be typed.

    Attributes:
        text: the line, without the prompt and what is explained behind it.
        words: of each program that a shell would start for it, the arguments, the program's name first.
        in_block: whether it stands in a block of its own, else within a sentence.
    """

    text: str
    words: tuple[tuple[str, ...], ...]
    in_block: bool


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def command_blocks(document: str) -> list[list[str]]:
    """The document's blocks of commands, line by line; what they print is left out."""
    text = read(document)
    fenced = [
        block
        for language, block in re.findall(r"^```(\w*)\n([\s\S]*?)^```$", text, re.MULTILINE)
        if language in ("", "bash", "console", "sh")
    ]
    rest = re.sub(r"^```[\s\S]*?^```$", "", text, flags=re.MULTILINE)
    indented = re.findall(r"^((?:    .*\n|\n(?=    ))+)", rest, re.MULTILINE)
    found = []
    for block in [*fenced, *(re.sub(r"^    ", "", each, flags=re.MULTILINE) for each in indented)]:
        lines = [line for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]
        if not lines or not _FIRST.match(lines[0]):
            continue
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        found.append([re.sub(r"\s+#(?!SBATCH) .*$", "", line) for line in lines])
    return found


def inline_commands(document: str) -> list[str]:
    """Commands between backquotes, with at least one argument."""
    rest = re.sub(r"^```[\s\S]*?^```$", "", read(document), flags=re.MULTILINE)
    rest = re.sub(r"^    .*$", "", rest, flags=re.MULTILINE)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", rest)]
    return [span for span in spans if re.match(rf"(?:{PROGRAMS}) ", span)]


def commands(document: str, folder: Path) -> list[Command]:
    """All commands of a document, in its order.

    Args:
        folder: where a shell reads them; nothing is started there.
    """
    scripts = [(lines, True) for lines in command_blocks(document)] + [
        ([line], False) for line in inline_commands(document)
    ]
    found = []
    for lines, in_block in scripts:
        typed = [line.removeprefix("!") for line in lines if not line.startswith(("#SBATCH", "%"))]
        for line, words in zip(typed, programs_started(typed, folder), strict=True):
            found.append(Command(line, words, in_block))
    return found


def programs_started(lines: list[str], folder: Path) -> list[tuple[tuple[str, ...], ...]]:
    """Which programs a shell would start for each line, in which nothing but its own commands is found.

    The programs of a line stand in the order in which they were started; those of a pipeline, in any order.
    """
    notes = Path(tempfile.mkdtemp(prefix="notes-", dir=folder))
    script = _NOTING + "".join(f"LINE={number}\n{line}\n" for number, line in enumerate(lines))
    variables = {
        **_VARIABLES,
        "PATH": "/nonexistent",
        "NOTES": str(notes),
        "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8"),
    }
    bash = next(path for path in ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash") if Path(path).exists())
    done = subprocess.run(
        [bash, "-c", script], cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "syntax error" not in done.stderr and "unexpected EOF" not in done.stderr, done.stderr
    started: list[list[tuple[str, ...]]] = [[] for _ in lines]
    for note in sorted(notes.iterdir(), key=lambda note: (note.stat().st_mtime_ns, int(note.name.split("-")[1]))):
        number = int(note.name.split("-")[0])
        started[number].append(tuple(note.read_text(encoding="utf-8").split("\0")[:-1]))
    shutil.rmtree(notes)
    return [tuple(each) for each in started]


def shown_files(document: str) -> dict[str, str]:
    """The files that a document shows, by name: the last one that the paragraph before the block names."""
    shown = re.findall(r"([^\n]+(?:\n[^\n]+)*)\n\n```(?:python|yaml)\n(.*?)```", read(document), re.DOTALL)
    named = [(re.findall(r"`([\w/]+\.(?:py|yaml))`", before), content) for before, content in shown]
    return {names[-1]: content for names, content in named if names}


def write_files(document: str, folder: Path) -> None:
    for name, content in shown_files(document).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
