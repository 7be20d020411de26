"""Fixtures and hooks for all tests: they use the CPU, their own folders and a time limit, and run in parallel."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from _pytest.logging import LogCaptureHandler
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tests.support import processes
from tests.support.settings import NO_REPORT, QUICK, TINY

ROOT = processes.ROOT
TRAIN = processes.TRAIN
USER_CLASSES = Path(__file__).with_name("user_classes")

# Remove variables of the user's shell that would change tests, e.g. those of a SLURM job, a git hook or W&B.
_REMOVED_PREFIXES = ("GIT_", "GLOO_", "GROUP_", "HYDRA_", "LAPTIME_", "LOCAL_", "MLFLOW_", "NCCL_", "OMPI_", "OMP_",
              "PL_TRAINER_", "PMI_", "SLURM_", "TORCHELASTIC_", "WANDB_")  # fmt: skip
_REMOVED_NAMES = {
    "COLUMNS", "FORCE_COLOR", "MASTER_ADDR", "MASTER_PORT", "MPLBACKEND", "NO_COLOR",
    "PYTHONUNBUFFERED", "PYTHONWARNINGS", "RANK", "WORLD_SIZE",
}  # fmt: skip
for _name in list(os.environ):
    if _name.startswith(_REMOVED_PREFIXES) or _name in _REMOVED_NAMES:
        del os.environ[_name]
os.umask(0o022)
# With this variable, each of hundreds of processes would compile Laptime again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Hide accelerators, before torch is imported: the suite tests the CPU.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ONEAPI_DEVICE_SELECTOR": "*:cpu"}
# Busy waiting makes threads a hundred times slower when other processes use the cores.
os.environ["OMP_WAIT_POLICY"] = "passive"
# Commands import this checkout, even if another one is installed.
_USER_PATHS = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
os.environ["PYTHONPATH"] = os.pathsep.join([str(USER_CLASSES), str(ROOT / "src"), *_USER_PATHS])

# Put the modules in user_classes/ on the allow-list of configurations.
os.environ["LAPTIME_ALLOWED_TARGETS"] = ",".join(sorted(path.stem for path in USER_CLASSES.glob("*.py")))

# The default run has the same cases every time, so that failures are reproducible. The soak draws new ones.
_HYPOTHESIS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("default run", derandomize=True, **_HYPOTHESIS)
settings.register_profile("soak", derandomize=False, print_blob=True, **_HYPOTHESIS)
settings.load_profile("default run")

# Time limit of tests marked soak. The limit of other tests is `timeout` in pyproject.toml.
SOAK_TIMEOUT_S = 1200


# Parallel runs.


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run whole folders in three processes, a file at a time, and selected tests in one process."""
    arguments, option = config.invocation_params.args, config.option
    if hasattr(config, "workerinput"):  # this process is one of the three
        return
    chooses = any(argument.startswith(("--dist", "-p")) for argument in arguments)
    if getattr(option, "numprocesses", None) is not None or chooses:
        return
    debugs = option.usepdb or option.trace or option.capture == "no"
    selects = option.keyword or option.lf or option.failedfirst or option.stepwise or option.collectonly
    names_files = any("::" in argument or argument.endswith(".py") for argument in arguments)
    if not (debugs or selects or names_files):
        # One more than the cores of the smallest machine, because tests mostly wait for other processes.
        option.numprocesses, option.dist, option.loadscopereorder = 3, "loadfile", False


def pytest_configure(config: pytest.Config) -> None:
    marks = config.option.markexpr
    if "soak" in marks and "not soak" not in marks:
        settings.load_profile("soak")


def pytest_unconfigure() -> None:
    processes.stop_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files that start processes first, so that short files fill the end of the run."""
    waits: dict[Path, int] = {}
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.add_marker(pytest.mark.timeout(SOAK_TIMEOUT_S))
        waits[item.path] = waits.get(item.path, 0) + (item.get_closest_marker("unit") is None)
    items.sort(key=lambda item: -waits[item.path])  # stable: the order within a file stays


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run tests marked `alone` while no other test of this pytest runs: they measure, or load the machine."""
    with _test_lock(item.config, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _test_lock(config: pytest.Config, alone: bool) -> Iterator[None]:
    number = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    if number == "1":
        yield
        return
    folder = Path(config._tmp_path_factory.getbasetemp()).parent  # type: ignore[attr-defined]
    workers = [f"gw{index}" for index in range(int(number))]
    # A worker that replaces a dead one has a higher number.
    this_worker = workers[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(workers)]
    with ExitStack() as locks:
        # While a test waits to be alone, it holds next.lock, so that no further tests start.
        with FileLock(folder / "next.lock"):
            for worker in workers if alone else [this_worker]:
                locks.enter_context(FileLock(folder / f"{worker}.lock"))
        yield


# Fixtures.


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack MNIST once for all tests of this process."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder. After the test, modules that were imported from it are removed from sys.modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Remove handlers that a test or a package added to the root logger, because they write to closed streams."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers and not isinstance(handler, LogCaptureHandler):
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(autouse=True)
def no_process_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unit tests that start a process, so that `pytest -m unit` stays fast."""
    if request.node.get_closest_marker("unit") is None:
        return
    import torch  # noqa: F401  its first import starts ldconfig

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a test marked unit must not start a process: remove the mark, or the process")

    monkeypatch.setattr(subprocess, "_fork_exec" if hasattr(subprocess, "_fork_exec") else "Popen", refuse)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    monkeypatch.setattr(processes.Process, "__init__", refuse)
    if hasattr(os, "fork"):
        monkeypatch.setattr(os, "fork", refuse)


@pytest.fixture
def start(work_folder: Path) -> Iterator[Callable[..., Any]]:
    """tests.support.processes.start. After the test, all started processes and their children are killed."""
    started: list[Any] = []

    def run(*arguments: object, **how: Any) -> Any:
        process = processes.start(*arguments, **how)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            with_children: list[psutil.Process] = []
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                with_children = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for victim in with_children:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
            psutil.wait_procs(with_children, timeout=processes.DEADLINE_S)


@pytest.fixture
def train(work_folder: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `python train.py ARGUMENTS` to its end. Keyword arguments are environment variables."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return processes.run(*arguments, environment=environment)

    return run


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run the command line in pytest's own process, for tests that patch something. Ranks are still processes."""
    from laptime.cli import main

    def run(*arguments: str) -> SimpleNamespace:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        captured = capfd.readouterr()
        return SimpleNamespace(returncode=end.value.code or 0, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """trained(*overrides): the directory of a completed run. Tests of one process that use the same overrides share it.

    To change something, copy the directory (shutil.copytree). The session fails if a test has changed it.
    """
    folder = tmp_path_factory.mktemp("trained")
    run_dirs: dict[tuple[str, ...], Path] = {}
    contents: dict[Path, list[tuple[str, int, int]]] = {}

    def run(*overrides: str) -> Path:
        if overrides not in run_dirs:
            path = folder / str(len(list(folder.iterdir())))  # directories of failed runs count, too
            done = processes.run(*overrides, f"hydra.run.dir={path}", cwd=folder)
            assert done.returncode == 0, done.stderr
            run_dirs[overrides], contents[path] = path, _content(path)
        return run_dirs[overrides]

    yield run
    changed = [overrides for overrides, path in run_dirs.items() if _content(path) != contents[path]]
    assert not changed, f"a test changed a shared run: {changed}"


def _content(folder: Path) -> list[tuple[str, int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two short runs, seeds 1 and 2, once per process. `two_runs` is a copy that a test may change."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ["-m", *TINY, NO_REPORT, f"hydra.sweep.dir={folder / 'sweep'}", "training.epochs=1", "seed=1,2"]
    done = processes.run(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture
def two_runs(finished_sweep: Path, work_folder: Path) -> Path:
    copy = Path("multirun/sweep")
    shutil.copytree(finished_sweep, copy)
    return copy


@pytest.fixture
def the_run(work_folder: Path) -> Callable[[], tuple[Path, dict[str, Any]]]:
    """the_run(): directory and record of the only run in the work folder."""

    def find() -> tuple[Path, dict[str, Any]]:
        (path,) = work_folder.rglob("run.json")
        return path.parent, json.loads(path.read_text())

    return find


@pytest.fixture
def breaking() -> Callable[..., list[str]]:
    """breaking(rank, epoch, how): overrides for three epochs with two ranks, one of which fails during an epoch."""

    def overrides(rank: int, epoch: int, how: str, once: bool = False) -> list[str]:
        target = f"_target_:breaking.BreakAt,rank:{rank},epoch:{epoch},how:{how},once:{str(once).lower()}"
        quick = [*QUICK, "dataset.limit=2000", "training.batch_size=32", "strategy.world_size=2"]
        return [*quick, "training.epochs=3", f"+callbacks.breaks={{{target}}}"]

    return overrides
