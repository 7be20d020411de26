"""Links, commands and test names in the documents are valid, and generated pages are current."""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from laptime.cli import dispatch
from laptime.cli.dispatch import COMMANDS
from laptime.cli.train import main
from laptime.config import security
from laptime.config.compose import add_user_modules, compose, hydra_session
from laptime.errors import UserError
from laptime.runner import fresh_processes
from laptime.runner.check import check
from tests.support import documents, processes
from tests.support.documents import DOCUMENTS, ROOT, Command, read

WITH_COMMANDS = [*DOCUMENTS, "benchmarks/README.md"]
BENCHMARKS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if path.name != "ratios.py")
PARSE_ONLY = Path(documents.__file__).with_name("parse_only.py")
# Values for placeholders in commands.
PLACEHOLDERS = {"DIR": "latest", "OVERRIDES": "seed=1", "NAME": "compile"}
# Incomplete commands.
INCOMPLETE = {"python train.py model=": "the Tab key completes it"}
# Programs whose arguments are not checked.
OTHER_PROGRAMS = {"head", "ls", "mail", "mlflow", "pytest", "scontrol", "wandb"}
# Scripts of other projects, whose arguments are not checked.
OTHER_SCRIPTS = {"src/train.py": "of a project made from lightning-hydra-template"}
# Commands that tests can't run, and why.
NOT_RUN = {
    "pip install": "is what the tests were installed by",
    "tensorboard --logdir": "serves until it is stopped; analysis/test_report.py reads its events",
    "torchrun --nnodes": "needs several machines; test_torchrun.py runs it on two made of network namespaces",
    "hydra/launcher=submitit_slurm": "needs SLURM; test_slurm.py simulates it",
    "device=cuda": "is a cell of a notebook in Colab",
}
# 1,200 of the images are for training: more than the largest batch of experiment=batch_size_scaling.
SHORT = {"training.epochs": "1", "dataset.limit": "1500", "measure.peak": "false", "strategy.threads_per_rank": "1"}


# The table of docs/RELIABILITY.md.


def rows() -> list[str]:
    """The rows of its tables that name a fault or a matter of security, and a test."""
    tables = re.findall(r"^\| (?:fault|matter) \|.*\n\|[-|]+\n((?:\|.*\n)+)", read("docs/RELIABILITY.md"), re.MULTILINE)
    return [row for table in tables for row in table.splitlines()]


def soak_marks(path: Path) -> dict[str, bool]:
    """The tests of a file, and whether each is only in the soak, with all of its parameters."""
    text = path.read_text(encoding="utf-8")
    whole_file = re.search(r"^pytestmark = .*\.soak\b", text, re.MULTILINE) is not None
    functions = re.findall(r"^((?:@[\s\S]*?\n)?)def (test_\w+)\(", text, re.MULTILINE)
    marks = {name: decorators.rpartition("\n\n\n")[2] for decorators, name in functions}
    return {
        name: whole_file or re.search(r"^@.*\.soak$", mark, re.MULTILINE) is not None for name, mark in marks.items()
    }


@pytest.mark.unit
def test_every_row_of_the_reliability_tables_names_tests_of_the_default_run():
    """Each name is a test of the file named before it. If all tests of a row are in the soak, the row says so."""
    files = {str(path.relative_to(ROOT / "tests")): soak_marks(path) for path in (ROOT / "tests").rglob("test_*.py")}
    wrong = []
    for row in rows():
        fault, cell = row.split("|")[1].strip(), row.rstrip(" |").rpartition("|")[2]
        in_use: list[str] = []
        marks: list[bool] = []
        for name in re.findall(r"`([\w/]+\.py|test_\w+)`", cell):
            if name.endswith(".py"):
                in_use = in_use if name in files else []
                in_use = [*in_use, name] if in_use and not marks else [name]
                wrong += [f"{fault}: tests/{name} does not exist"] if name not in files else []
                continue
            holders = [file for file, tests in files.items() if name in tests]
            places = [file for file in in_use if name in files.get(file, {})] if in_use else holders
            if not places:
                wrong.append(f"{fault}: {name} is in {', '.join(holders) or 'no file'}, not in {', '.join(in_use)}")
            marks += [files[place][name] for place in places]
        if not marks:  # whole files
            marks = [all(files[name].values()) for name in in_use if name in files]
        if not marks:
            wrong.append(f"{fault}: names no test")
        elif all(marks) and "soak" not in cell:
            wrong.append(f"{fault}: all of its tests are in the soak, but the row doesn't say so")
    assert len(rows()) > 40
    assert not wrong, "\n".join(wrong)


# Links.


@pytest.mark.unit
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_to_an_existing_file(document):
    text = read(document)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        name, _, place = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), link
        assert not place or place in places(path.read_text(encoding="utf-8")), link
    assert links or document not in ("README.md", "docs/choosing.md", "docs/sweeps.md")
    for script in re.findall(r"\b(?:benchmarks|docs)/\w+\.py\b", text):
        assert (ROOT / script).exists(), script


def places(text: str) -> set[str]:
    """Anchors in a document: GitHub makes them from its headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return anchors | {heading.strip("`") for heading in headings}


# Commands: all have valid arguments.


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Reader"]:
    """A Reader in a folder with the files that the documents show."""
    folder = tmp_path_factory.mktemp("reader")
    for document in DOCUMENTS:
        documents.write_files(document, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security, "_FROM_ENVIRONMENT", ("my_lab",))  # docs/own_model.md exports it
        patch.setattr(fresh_processes, "preload", lambda: None)  # no command trains
        yield Reader(folder, patch)


class Reader:
    """Checks the arguments of commands as far as possible without running them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.cache: dict[tuple[str, ...], str] = {}

    def error(self, words: tuple[str, ...]) -> str:
        """The program's error message about its arguments; empty if they are valid."""
        words = tuple(PLACEHOLDERS.get(word, word) for word in words)
        if words not in self.cache:
            self.cache[words] = self._error(*words)
        return self.cache[words]

    def _error(self, program: str, *arguments: str) -> str:
        first = arguments[0] if arguments else ""
        match program:
            case "srun" if first == "bash":
                (inner,) = documents.programs_started([arguments[-1]], self.folder)
                return "".join(map(self.error, inner))
            case "srun":
                return self.error(arguments)
            case "torchrun":
                from torch.distributed.run import get_args_parser

                parsed = get_args_parser().parse_args(arguments)
                module = ["-m"] if parsed.module else []
                return self.error(("python", *module, parsed.training_script, *parsed.training_script_args))
            case "tensorboard":
                return "" if first == "--logdir" and len(arguments) == 2 else "tensorboard: not --logdir DIR"
            case "pip":
                return self._pip(arguments[1:])
            case "laptime":
                return self._laptime(arguments)
            case "python" if first == "-m":
                return self._module(*arguments[1:])
            case "python" if first == "train.py":
                return self._train(arguments[1:])
            case "python" if first in ("evaluate.py", "export.py"):
                return self._module(f"laptime.{first.removesuffix('.py')}", *arguments[1:])
            case "python":
                return self._script(*arguments)
        return "" if program in OTHER_PROGRAMS else f"{program}: unknown program"

    def _laptime(self, arguments: tuple[str, ...]) -> str:
        command, subarguments = arguments[0] if arguments else "", arguments[1:]
        if command in COMMANDS and command != "train":
            return self._command(COMMANDS[command].module, *subarguments)
        if arguments in (("--help",), ("--version",)) or (re.fullmatch(r"\w+", command) and command != "train"):
            return ended(dispatch.main, arguments)
        return self._train(subarguments if command == "train" else arguments)

    def _train(self, arguments: tuple[str, ...]) -> str:
        from hydra._internal.utils import get_args_parser

        args = get_args_parser().parse_intermixed_args(arguments)
        if args.cfg or args.help or args.info or args.shell_completion:
            return ended(main, arguments)
        sweeps = ("experiment=", "search=", "sweep.resume=")
        if args.multirun or any(argument.startswith(sweeps) for argument in arguments):
            # Check further overrides of sweep.resume as those of a new sweep.
            resumes = ["-m"] if any(argument.startswith("sweep.resume=") for argument in arguments) else []
            overrides = [argument for argument in arguments if not argument.startswith("sweep.resume=")]
            # Check each value of a list, but only the first number of a list of numbers.
            fewer = [*resumes, *(re.sub(r"^([\w.]+=\d+),[\d,]+$", r"\1", override) for override in overrides)]
            error = ended(main, [*fewer, "sweep.dry_run=true"])
            # A dry run refuses searches and single runs, but only after it has checked everything else.
            return "" if error.startswith("error: sweep.dry_run=true: ") else error
        add_user_modules(args.config_dir)
        try:
            with hydra_session(args.config_dir) as hydra:
                check(compose(hydra, args.overrides, args.config_name), args.overrides)
        except UserError as error:
            return f"error: {error}"
        return ""

    def _module(self, name: str, *arguments: str) -> str:
        if name == "laptime":
            return self._laptime(arguments)
        return self._command(name if name in ("laptime.evaluate", "laptime.export") else f"{name}.__main__", *arguments)

    def _command(self, name: str, *arguments: str) -> str:
        rooms = {"laptime.evaluate": "laptime.evaluation.main", "laptime.export": "laptime.exporting.main"}
        command = importlib.import_module(rooms.get(name, name))
        if not arguments or "--help" in arguments:
            return ended(command.main, ["--help"])
        if name in rooms:
            with self.patch.context() as patch:
                patch.setattr(command, "_work", lambda config, overrides: 0)
                return ended(command.main, arguments)
        args = parsed(command.main, arguments)
        if isinstance(args, str):
            return args
        return self._train(tuple(args.overrides)) if name == "laptime.tune.__main__" else ""

    def _script(self, script: str, *arguments: str) -> str:
        if script in OTHER_SCRIPTS:
            return ""
        if not (self.folder / script).exists() and not arguments and (ROOT / script).parent.name == "docs":
            return "" if (ROOT / script).exists() else f"{script}: does not exist"
        if (self.folder / script).exists():
            return "" if not arguments else f"{script}: takes no arguments"
        done = processes.run(ROOT / script, *arguments, script=PARSE_ONLY, cwd=self.folder)
        return done.stderr or f"{script}: doesn't parse arguments" if done.returncode else ""

    def _pip(self, arguments: tuple[str, ...]) -> str:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        names = re.findall(r"\[(.*?)\]", " ".join(arguments))
        return "".join(f"pip: no extra {name}" for name in names if name not in extras)


def ended(command: Callable[[list[str]], Any], arguments: Any) -> str:
    """A command's output to standard error if its exit code is not 0; else an empty text."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = command(list(arguments))
        except SystemExit as end:
            code = end.code
    return (stderr.getvalue().strip() or f"exit code {code}") if code else ""


def parsed(command: Callable[[list[str]], Any], arguments: tuple[str, ...]) -> argparse.Namespace | str:
    """The arguments that a command has parsed, or its error message. The command stops after parsing."""
    namespaces: list[argparse.Namespace] = []

    class Parsed(Exception):
        pass

    def stop_after(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def parse_and_stop(*positional: Any, **keywords: Any) -> None:
            namespaces.append(parse(*positional, **keywords))
            raise Parsed

        return parse_and_stop

    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(stderr), contextlib.suppress(Parsed):
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
        command(list(arguments))
    return namespaces[-1] if namespaces else stderr.getvalue() or "the command ended before it parsed its arguments"


@pytest.mark.parametrize(
    "document",
    [name if name == "README.md" else pytest.param(name, marks=pytest.mark.soak) for name in WITH_COMMANDS],
)
def test_every_command_of_a_document_has_valid_arguments(document, reader, monkeypatch):
    monkeypatch.chdir(reader.folder)
    text = read(document)
    commands = documents.commands(document, reader.folder)
    for command in commands:
        if command.text in INCOMPLETE:
            continue
        for words in command.words:
            error = reader.error(words)
            assert not error or error.splitlines()[0] in text, f"{command.text}\n{error}"
    assert unchecked_commands(text, commands) == []


def unchecked_commands(text: str, commands: list[Command]) -> list[str]:
    """Mentions of commands with arguments that are not in `commands`."""
    remaining = re.sub(r"\s+", " ", text.replace("\\\n", " "))
    for command in sorted(commands, key=lambda command: -len(command.text)):
        remaining = remaining.replace(re.sub(r"\s+", " ", command.text), "")
    without_eval = re.sub(r'eval "\$\([^)]*\)"', "", remaining)
    return re.findall(
        r"(?:\w+\.py|-m laptime\.\w+|torchrun|\$ laptime) (?:-{1,2}\w[\w-]*|[a-z.]+=\S+)[^`]{0,40}", without_eval
    )


def test_commands_with_invalid_arguments_are_found(reader, monkeypatch):
    """A test of the Reader: each kind of command, with and without a mistake."""
    monkeypatch.chdir(reader.folder)
    for right, wrong in [
        ("python train.py model=cnn", "python train.py model=cmm"),
        ("laptime -m seed=1,2", "laptime -m sed=1,2"),
        ("python train.py search=accuracy", "python train.py search=accuracy hydra.sweeper.trials=3"),
        ("python train.py -m seed=1 hydra/launcher=joblib", "python train.py -m seed=1 hydra/launcher=joblibs"),
        ("torchrun --nproc-per-node 2 train.py", "torchrun --nproc-per-node 2 train.py modle=cnn"),
        ("srun bash -c 'python train.py seed=1'", "srun bash -c 'python train.py seeds=1'"),
        ("python evaluate.py run=latest", "python evaluate.py run=latest latency.sizes=1"),
        ("python export.py run=latest format=onnx", "python export.py run=latest format=onyx"),
        ("python -m laptime.tune lr model=cnn", "python -m laptime.tune lr model=cmm"),
        ("python -m laptime.analysis latest", "python -m laptime.analysis latest --buy precision"),
        ("python -m laptime.watch latest --once", "python -m laptime.watch latest --twice"),
        ("laptime train model=cnn", "laptime train model=cmm"),
        ("laptime tune lr model=cnn", "laptime tune lr model=cmm"),
        ("laptime analyze latest --by model", "laptime analyze latest --bye model"),
        ("laptime evaluate run=latest", "laptime evaluate run=latest latency.sizes=1"),
        ("laptime watch latest --once", "laptime watch latest --twice"),
        ("python benchmarks/models.py --limit 5000", "python benchmarks/models.py --limits 5000"),
        ("pip install 'laptime[onnx]'", "pip install 'laptime[onyx]'"),
    ]:
        assert reader.error(tuple(shlex.split(right))) == "", right
        assert reader.error(tuple(shlex.split(wrong))) != "", wrong


# Commands: the default run executes those of the README, the soak the others.


@pytest.mark.soak
def test_every_command_of_the_readme_does_what_it_says(work_folder):
    """The soak runs them again, with the breakdown and with repeats."""
    quick = {**SHORT, "measure.breakdown": "false"}
    fewer = {"seed=1,2,3": "seed=1", "strategy.world_size=1,2,4": "strategy.world_size=1,2"}
    assert run_all("README.md", work_folder, quick, fewer) >= 9


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("document", ["README.md", "docs/recipes.md"])
def test_every_command_of_a_document_does_what_it_says(document, work_folder):
    fewer = {"seed=1,2,3": "seed=1,2", "seed=1,2,3,4,5": "seed=1,2"}
    assert run_all(document, work_folder, SHORT, fewer) >= 9


def run_all(document: str, folder: Path, added: Mapping[str, str], fewer: Mapping[str, str]) -> int:
    """Run the commands of a document one after the other in one folder, as a reader would.

    Args:
        added: overrides for commands that train and don't set these keys.
        fewer: replacements of arguments, so that the commands train less.

    Returns:
        The number of commands.
    """
    documents.write_files(document, folder)
    checked: set[Path] = set()
    number = 0
    for command in filter(lambda command: command.in_block, documents.commands(document, folder)):
        if command.text.startswith(tuple(NOT_RUN)) or any(word in NOT_RUN for word in command.text.split()):
            continue
        for words in command.words:
            argv = [fewer.get(word, word) for word in words]
            if trains(words):
                keys = {word.partition("=")[0] for word in argv}
                argv += [f"{key}={value}" for key, value in added.items() if key not in keys]
                argv = [f"dataset.limit={SHORT['dataset.limit']}" if "dataset.limit" in word else word for word in argv]
                argv += ["seed=1"] if "experiment" in keys and "seed" not in keys else []
            run_one(argv, folder)
            check_files(words, folder, checked)
            number += 1
    return number


def run_one(argv: list[str], folder: Path) -> None:
    if argv[0] == "torchrun":
        argv = ["python", "-m", "torch.distributed.run", "--standalone", *argv[1:]]
    assert argv[0] == "python", argv
    settings: dict[str, Any] = {"cwd": folder, "timeout": 900, "real": "torch.distributed.run" in argv}
    _, *words = [str(ROOT / word) if re.fullmatch(r"\w+\.py", word) else word for word in argv]
    if words[0] == "-m":
        done = processes.run(*words[2:], module=words[1], **settings)
    else:
        done = processes.run(*words[1:], script=words[0], **settings)
    assert done.returncode == 0, f"{argv}\n{done.stderr}"
    assert "Traceback" not in done.stderr, f"{argv}\n{done.stderr}"
    assert done.stdout.strip(), argv


def trains(words: tuple[str, ...]) -> bool:
    without_training = re.compile(r"--(help|cfg)|sweep\.(resume|dry_run)=")
    return "train.py" in words and not any(without_training.match(word) for word in words)


def check_files(words: tuple[str, ...], folder: Path, checked: set[Path]) -> None:
    """Check the files of a command: completed runs, a sweep's report, an evaluation, an exported network."""
    records = set(folder.rglob("run.json")) - checked
    checked |= records
    if trains(words):
        assert records, words
        assert all('"status": "completed"' in record.read_text() for record in records), words
        sweeps = {record.parents[1] for record in records if "multirun" in record.parts}
        assert all((sweep / "summary/report.html").exists() for sweep in sweeps), words
    else:
        assert not records, words
    for program, file in {"evaluate.py": "evaluation.json", "export.py": "export.json"}.items():
        assert program not in words or list(folder.rglob(file)), words
    if "--out" in words:
        assert (folder / words[words.index("--out") + 1] / "summary.json").exists()


@pytest.mark.soak
def test_the_python_of_the_recipes_does_what_it_says(train):
    assert train("-m", "strategy.world_size=1", *(f"{key}={value}" for key, value in SHORT.items())).returncode == 0
    (block,) = re.findall(r"^    import laptime\n(?:(?:    .*)?\n)+", read("docs/recipes.md"), re.MULTILINE)
    *lines, last = [line[4:] for line in block.splitlines() if line.strip()]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert eval(last, names).shape == (1, 4)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_starts(name, work_folder):
    done = processes.run("--help", script=ROOT / "benchmarks" / name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}") and not done.stderr
    assert list(work_folder.iterdir()) == []


# Generated pages.


def test_the_api_reference_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs/make_api.py"))["page"]()
    assert made == read("docs/api.md"), "run python docs/make_api.py"
    assert all(f"### `{name}`" in made for name in ("laptime.cli.train.run", "laptime.analysis.frames.load"))


@pytest.mark.unit
def test_the_configuration_reference_is_what_conf_says():
    made = runpy.run_path(str(ROOT / "docs/make_configuration.py"))["page"]()
    assert made == read("docs/configuration.md"), "run python docs/make_configuration.py"
    for option in (ROOT / "conf").glob("*/*.yaml"):
        if option.parent.name != "hydra":
            assert f"### `{option.parent.name}={option.stem}`" in made


@pytest.mark.unit
def test_benchmarks_readme_lists_every_script():
    explained = set(re.findall(r"^\| `(\w+\.py)`", read("benchmarks/README.md"), re.MULTILINE))
    assert explained == set(BENCHMARKS)
