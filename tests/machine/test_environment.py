"""What is recorded of machine, system and software, and that no secret is."""

import json
import platform
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tests.support import processes
from tests.support.settings import TINY

import laptime
from laptime.machine.device import Device
from laptime.machine.environment import PACKAGES, RANK_PACKAGES, code_hash, environment
from laptime.machine.torch_build import driver_version, torch_build
from laptime.record.files import flat_config, read_record
from laptime.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
SECRET = "correct-horse-battery"


def test_every_direct_dependency_is_recorded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    wanted = [
        *project["dependencies"],
        *(requirement for name, extra in extras if name != "dev" for requirement in extra),
    ]
    needed = {requirement.partition(">")[0].partition("=")[0].partition("[")[0].strip() for requirement in wanted}
    assert needed | {"laptime", "lightning"} == set(PACKAGES)  # LapTimer times trainings that use the package lightning
    assert environment("a CPU", 2).packages["psutil"] == version("psutil")


@pytest.mark.parametrize(
    ("value", "recorded"), [(None, False), ("", False), ("0", False), ("false", False), ("1", True)]
)
def test_the_hostname_is_recorded_only_if_requested(value, recorded, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "my-machine")
    monkeypatch.delenv("LAPTIME_RECORD_HOSTNAME", raising=False)
    if value is not None:
        monkeypatch.setenv("LAPTIME_RECORD_HOSTNAME", value)
    section = environment("a CPU", 2)
    assert section.hostname == ("my-machine" if recorded else None)
    assert ("my-machine" in str(section)) is recorded
    assert len(section.hostname_hash) == 12


def test_only_relevant_variables_are_recorded_without_secrets(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTORCH_HUB_TOKEN", SECRET)
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    variables = environment("a CPU", 2).variables
    assert (variables["OMP_NUM_THREADS"], variables["PYTORCH_HUB_TOKEN"]) == ("3", "***")
    assert "SOMETHING_ELSE" not in variables


def test_torch_build_describes_the_installed_torch():
    build = torch_build()
    assert (build["version"], build["num_threads"]) == (torch.__version__, torch.get_num_threads())
    assert build["num_interop_threads"] == torch.get_num_interop_threads()
    assert f"BLAS_INFO={build['blas']}" in torch.__config__.show()
    assert (build["mkl"] is not None) == torch.backends.mkl.is_available()
    assert (build["onednn"] is not None) == torch.backends.mkldnn.is_available()
    assert (build["openmp"] is not None) == torch.backends.openmp.is_available()


NVIDIA = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12.3.0\n"
)
NVIDIA_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build  (builder)\n"


@pytest.mark.parametrize(
    ("content", "expected"), [(NVIDIA, "535.129.03"), (NVIDIA_OPEN, "560.35.03"), ("", None), ("nonsense", None)]
)
def test_driver_version_of_nvidia(content, expected, work_folder, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    (work_folder / "proc/driver/nvidia").mkdir(parents=True)
    (work_folder / "proc/driver/nvidia/version").write_text(content)
    assert driver_version(Device("cuda", "cuda", "a GPU", 1, None), work_folder) == expected


def test_the_cpu_has_no_driver():
    assert driver_version(Device("cpu", "cpu", "a CPU", 1, None)) is None


def test_a_run_records_torch_with_the_threads_of_its_ranks(trained):
    record = read_record(trained(*TINY, "training.epochs=1", "strategy.world_size=2"))
    assert record["environment"]["torch"]["num_threads"] == 1
    assert record["environment"]["driver"] is None


LEAKY = [*TINY, "training.epochs=1", "model._target_=logs_secrets.Leaky"]


def written(run_dir: Path) -> dict[str, bytes]:
    """All files that a run has written, except Hydra's own."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def test_a_run_writes_no_secrets():
    record = laptime.run([*LEAKY, "logger=tensorboard", f"+model.token={SECRET}"])
    files = written(Path(record["run_dir"]))
    assert {"run.json", "train.log", "checkpoints/last.ckpt"} <= files.keys()
    assert any("tfevents" in name for name in files)
    assert [name for name, content in files.items() if SECRET.encode() in content] == []
    assert b"trying ***" in files["train.log"]
    assert record["config"]["model"]["token"] == "***"
    assert "+model.token=***" in record["command"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_secret_in_an_error_is_not_written(world_size, work_folder):
    fails = f"+callbacks.fails={{_target_:logs_secrets.Fails,password:{SECRET}}}"
    done = processes.run(*LEAKY, fails, f"strategy.world_size={world_size}")
    assert done.returncode == 1 and "401" in done.stderr
    (run_file,) = work_folder.rglob("run.json")
    assert "401 for ***" in json.loads(run_file.read_text())["error"]["message"]
    files = written(run_file.parent)
    assert [name for name, content in files.items() if SECRET.encode() in content] == []


def test_a_new_secret_is_the_same_experiment_and_may_resume():
    first = laptime.run([*LEAKY, f"+model.token={SECRET}"])
    run_dir = first["run_dir"]
    resumed = ["training.epochs=2", f"training.checkpoint={run_dir}"]
    again = laptime.run([*LEAKY, *resumed, "+model.token=another-secret"])
    assert again["status"] == "completed"
    other = laptime.run([*LEAKY, "+model.token=another-secret"])
    assert (first["config_hash"], first["group_hash"]) == (other["config_hash"], other["group_hash"])


def test_hparams_and_identity_hold_no_secret():
    groups = ("dataset", "model", "optimizer", "scheduler", "training")
    config = {group: {"api_key": SECRET} for group in groups} | {"seed": 1}
    assert flat_config(config) == {f"{group}.api_key": "***" for group in groups} | {"seed": 1}
    assert SECRET not in json.dumps(checkpoints.identity(config, 1))


def test_classes_get_the_real_value_of_a_secret():
    with pytest.raises(RuntimeError, match=f"401 for {SECRET}"):
        laptime.run([*LEAKY, f"+callbacks.fails={{_target_:logs_secrets.Fails,password:{SECRET}}}"])


# Packages that `import laptime` imports in every process, and packages that only display results.
NOT_HASHED = {
    "__init__", "analysis", "cli", "command_line", "errors", "extras", "starting", "suggest", "sweeps", "terminal",
    "text", "version",
}  # fmt: skip


def test_the_code_hash_covers_what_a_rank_imports(work_folder):
    done = processes.run(
        *TINY, "training.epochs=1", "strategy.world_size=2", "hydra.run.dir=run",
        "+callbacks.notes._target_=write_environment.WriteModules", real=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    packages = {name.partition(".")[0] for name in json.loads(Path("modules.json").read_text())}
    assert packages - NOT_HASHED <= set(RANK_PACKAGES)
    assert {"training", "lap", "runner", "models", "data"} <= packages


@pytest.mark.unit
def test_the_code_hash_does_not_cover_code_that_displays_results(monkeypatch):
    before = code_hash({})
    read_bytes = Path.read_bytes
    rooms = ("doctor", "watch", "tune", "exporting", "evaluation", "sweeps", "analysis")

    def changed(path: Path) -> bytes:
        return read_bytes(path) + (b"# other" if path.parent.name in changing else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    changing: tuple[str, ...] = rooms
    assert code_hash({}) == before
    changing = ("training",)
    assert code_hash({}) != before


@pytest.mark.unit
def test_the_code_of_a_class_named_in_a_list_is_hashed(work_folder, monkeypatch):
    monkeypatch.syspath_prepend(work_folder)
    config = {"model": {"_target_": "torch.nn.Sequential", "layers": [{"_target_": "own_layer.Layer"}]}}
    hashes = set()
    for text in ("a = 1", "a = 2"):
        Path("own_layer.py").write_text(text)
        hashes.add(code_hash(config))
    assert len(hashes) == 2


@pytest.mark.unit
@pytest.mark.parametrize("target", ["own_package.Net", "own_package.net.Net", "own_package.net.Net.make"])
def test_all_code_of_the_package_of_a_class_is_hashed(target, work_folder, monkeypatch):
    monkeypatch.syspath_prepend(str(work_folder))
    package = work_folder / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from own_package.net import Net\n")
    hashes = set()
    for content in ("class Net: ...\n", "class Net:\n    width = 2\n"):
        (package / "net.py").write_text(content)
        hashes.add(code_hash({"model": {"_target_": target}}))
    assert len(hashes) == 2


@pytest.mark.unit
def test_installed_packages_are_not_hashed():
    assert code_hash({"model": {"_target_": "functools.partial"}}) == code_hash({})
    assert code_hash({"model": {"_target_": "torch.nn.Linear"}}) == code_hash({})
