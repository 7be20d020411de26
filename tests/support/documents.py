"""Extract the commands that README and docs/ show, and split them into words as a shell does."""

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
# How the first line of a block of commands begins. Other blocks are Python, files or output.
_FIRST = re.compile(rf"\$ |[!%]|#SBATCH|(?:\w+=\S* )?(?:{PROGRAMS}) |\w+=\$\(")
# A shell that finds no program. Each command writes its words into its own file, because the commands of a pipeline run
# concurrently, and prints a word.
_RECORD_COMMANDS = """\
command_not_found_handle() { printf '%s\\0' "$@" > "$NOTES/$LINE-$BASHPID"; echo printed; }
"""
# Variables that a batch system or a user's shell would have set.
_VARIABLES = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node[1-2]"}


@dataclass(frozen=True)
class Command:
    """A command line in a document.

    Attributes:
        text: the line, without the prompt and without a comment after it.
        words: for each program that a shell would start: its name and its arguments.
        in_block: whether the line is in a code block, not in a sentence.
    """

    text: str
    words: tuple[tuple[str, ...], ...]
    in_block: bool


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def command_blocks(document: str) -> list[list[str]]:
    """The lines of each block of commands, without their output."""
    text = read(document)
    fenced = [
        block
        for language, block in re.findall(r"^```(\w*)\n([\s\S]*?)^```$", text, re.MULTILINE)
        if language in ("", "bash", "console", "sh")
    ]
    unfenced = re.sub(r"^```[\s\S]*?^```$", "", text, flags=re.MULTILINE)
    indented = re.findall(r"^((?:    .*\n|\n(?=    ))+)", unfenced, re.MULTILINE)
    blocks = []
    for block in [*fenced, *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]:
        lines = [line for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]
        if not lines or not _FIRST.match(lines[0]):
            continue
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        blocks.append([re.sub(r"\s+#(?!SBATCH) .*$", "", line) for line in lines])
    return blocks


def inline_commands(document: str) -> list[str]:
    """Commands between backquotes, with at least one argument."""
    prose = re.sub(r"^```[\s\S]*?^```$", "", read(document), flags=re.MULTILINE)
    prose = re.sub(r"^    .*$", "", prose, flags=re.MULTILINE)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    return [span for span in spans if re.match(rf"(?:{PROGRAMS}) ", span)]


def commands(document: str, folder: Path) -> list[Command]:
    """All commands of a document in order.

    Args:
        folder: folder in which a shell parses them, without starting programs.
    """
    scripts = [(lines, True) for lines in command_blocks(document)] + [
        ([line], False) for line in inline_commands(document)
    ]
    result = []
    for lines, in_block in scripts:
        shell_lines = [line.removeprefix("!") for line in lines if not line.startswith(("#SBATCH", "%"))]
        for line, words in zip(shell_lines, programs_started(shell_lines, folder), strict=True):
            result.append(Command(line, words, in_block))
    return result


def programs_started(lines: list[str], folder: Path) -> list[tuple[tuple[str, ...], ...]]:
    """The programs that a shell would start for each line, in the order of their start. Only builtins really run.

    The order within a pipeline is arbitrary.
    """
    notes = Path(tempfile.mkdtemp(prefix="notes-", dir=folder))
    script = _RECORD_COMMANDS + "".join(f"LINE={number}\n{line}\n" for number, line in enumerate(lines))
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
    return [tuple(programs) for programs in started]


def shown_files(document: str) -> dict[str, str]:
    """Contents of the files that a document shows, by the last file name in the paragraph above the block."""
    blocks = re.findall(r"([^\n]+(?:\n[^\n]+)*)\n\n```(?:python|yaml)\n(.*?)```", read(document), re.DOTALL)
    named = [(re.findall(r"`([\w/]+\.(?:py|yaml))`", paragraph), content) for paragraph, content in blocks]
    return {names[-1]: content for names, content in named if names}


def write_files(document: str, folder: Path) -> None:
    for name, content in shown_files(document).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
