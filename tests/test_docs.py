"""What the documents name is there."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from laptime.cli import main

ROOT = Path(__file__).resolve().parents[1]
NAMED = sorted(set(re.findall(r"`(test_\w+)`", (ROOT / "docs/RELIABILITY.md").read_text())))
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Documents whose commands are run, with few data; those of the others are composed.
FEW = {"dataset.limit": "2500", "training.epochs": "1", "measure.peak": "false"}
RUN = ["README.md", "docs/recipes.md"]
# What can't be run here, and why.
NOT_RUN = {
    "pip install": "is what the tests were installed by",
    "tensorboard --logdir": "serves until it is stopped; test_layers.py reads what it shows",
    "torchrun --nnodes": "needs several machines; test_torchrun.py runs it on two made of network namespaces",
    "srun ": "needs SLURM; test_slurm.py plays it",
    "#SBATCH": "the same",
    "first=$(scontrol": "the same",
    "last=$(ls": "the same",
    "hydra/launcher=submitit_slurm": "needs SLURM",
    "!": "a notebook's cell, in Colab",
    "%": "the same",
}


def test_every_test_that_the_reliability_table_names_is_there():
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(NAMED) > 30
    assert set(NAMED) <= defined


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_links_to_is_there(document):
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        name, _, place = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), link
        assert not place or place in places(path.read_text()), link
    scripts = re.findall(r"python (benchmarks/\w+\.py)", text)
    assert links or scripts or document not in ("README.md", "docs/RELIABILITY.md")
    for script in scripts:
        assert (ROOT / script).exists(), script


def places(text: str) -> set[str]:
    """What a link can name within a document: its headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return anchors | {heading.strip("`") for heading in headings}


def commands(document: str) -> list[str]:
    """What a document's code blocks tell to type, without comments."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"(?:^    .*\n)+", re.sub(r"^```[\s\S]*?^```", "", text, flags=re.MULTILINE), re.MULTILINE)
    found = []
    for block in blocks:
        lines = [line[4:] for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        if lines[0].startswith("$ "):  # with what it prints
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif not re.match(r"(python|pip|torchrun|srun|tensorboard|last=|first=|#SBATCH|!|%)", lines[0]):
            continue  # files, Python
        found += [re.sub(r"\s+#(?!SBATCH) .*$", "", line) for line in lines if line.strip()]
    return found


def write_files(document: str, folder: Path) -> None:
    """The files that a document shows, each named in the line before."""
    text = (ROOT / document).read_text()
    for name, content in re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", text, re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def is_run_here(command: str) -> bool:
    return not command.startswith(tuple(NOT_RUN)) and not any(word in NOT_RUN for word in command.split())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_training_that_a_document_tells_to_type_is_right(document, work_folder, capfd):
    write_files(document, work_folder)
    for command in filter(is_run_here, commands(document)):
        words = shlex.split(command)
        if words[:2] != ["python", "train.py"] or re.search(r"--(help|cfg)|search=|hydra/|\.resume=", command):
            continue
        sweeps = words[2:3] == ["-m"] or "experiment=" in command
        with pytest.raises(SystemExit) as end:
            main([*words[2:], *(["sweep.dry_run=true"] if sweeps and "mnist_99" not in command else ["--cfg", "job"])])
        printed = capfd.readouterr()
        told = printed.err.strip()
        assert not end.value.code or (told and told in (ROOT / document).read_text()), (command, printed.err)


@pytest.mark.slow
@pytest.mark.parametrize("document", RUN)
def test_every_command_of_a_document_does_what_it_says(document, work_folder):
    """One after the other in one folder, as somebody would who reads it, with few data and repeats."""
    write_files(document, work_folder)
    told = list(filter(is_run_here, commands(document)))
    assert len(told) > 9
    for command in told:
        words = shlex.split(re.sub(r"seed=1,2,3[,\d]*", "seed=1,2", command))
        if words[0] == "torchrun":
            words[:1] = ["python", "-m", "torch.distributed.run"]
        if "train.py" in words and not re.search(r"--(help|cfg)|\.resume=", command):
            typed = {word.partition("=")[0] for word in words}
            words += [f"{key}={value}" for key, value in FEW.items() if key not in typed]
            words += ["seed=1"] if "experiment" in typed and "seed" not in typed else []
        words = [str(ROOT / word) if re.fullmatch(r"\w+\.py", word) else word for word in words]
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=work_folder, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


@pytest.mark.slow
def test_the_python_of_the_recipes_does_what_it_says(train):
    assert train("-m", "strategy.world_size=1", *(f"{key}={value}" for key, value in FEW.items())).returncode == 0
    text = (ROOT / "docs/recipes.md").read_text()
    (block,) = re.findall(r"^    import laptime\n(?:(?:    .*)?\n)+", text, re.MULTILINE)
    *lines, last = [line[4:] for line in block.splitlines() if line.strip()]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert eval(last, names).shape == (1, 4)


def test_the_api_reference_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs/make_api.py"))["page"]()
    assert made == (ROOT / "docs/api.md").read_text(), "run python docs/make_api.py"
    assert all(f"### `{name}`" in made for name in ("laptime.cli.run", "laptime.analysis.frames.load"))


def test_the_configuration_reference_is_what_conf_says():
    made = runpy.run_path(str(ROOT / "docs/make_configuration.py"))["page"]()
    assert made == (ROOT / "docs/configuration.md").read_text(), "run python docs/make_configuration.py"
    for option in (ROOT / "conf").glob("*/*.yaml"):
        if option.parent.name != "hydra":
            assert f"### `{option.parent.name}={option.stem}`" in made


def test_every_benchmark_is_explained():
    explained = set(re.findall(r"^\| `(\w+\.py)`", (ROOT / "benchmarks/README.md").read_text(), re.MULTILINE))
    assert explained == {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"ratios.py"}
