"""The wheel contains everything that Laptime needs, and works without the checkout."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from tests.support import processes
from tests.support.settings import QUICK

ROOT = processes.ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in this process by the builder that `pip wheel` uses."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build_wheel(str(folder))


@pytest.fixture(scope="module")
def content(wheel: Path) -> dict[str, bytes]:
    """The wheel's files by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def kept_by_git(folder: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if listed.returncode:  # an unpacked source distribution
        return [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [ROOT / name for name in listed.stdout.split("\0")[:-1] if (ROOT / name).exists()]


def test_the_wheel_holds_all_of_src_and_conf(content):
    expected = {str(path.relative_to(ROOT / "src")): path for path in kept_by_git("src")}
    expected |= {f"laptime/conf/{path.relative_to(ROOT / 'conf')}": path for path in kept_by_git("conf")}
    assert len(expected) > 150
    assert [name for name in expected if name not in content] == []
    assert [name for name, path in expected.items() if content[name] != path.read_bytes()] == []
    for needed in (
        "laptime/conf/config.yaml", "laptime/conf/hydra/help/laptime.yaml", "laptime/analysis/report.html.jinja",
        "laptime/data/mnist_files/train-images-idx3-ubyte.gz", "hydra_plugins/laptime/repeating_sweeper.py",
        "laptime/evaluation/conf/evaluate.yaml", "laptime/py.typed",
    ):  # fmt: skip
        assert needed in content


def test_the_wheel_holds_nothing_else(content):
    """No tests, benchmarks, documents or files that runs have written."""
    tops = {name.partition("/")[0] for name in content}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"laptime", "hydra_plugins"}
    assert [name for name in content if "__pycache__" in name or name.endswith(".pyc")] == []
    assert "hydra_plugins/__init__.py" not in content, "a namespace that other packages share"


def test_its_metadata_name_the_command_and_what_it_needs(content):
    (metadata,) = (text for name, text in content.items() if name.endswith(".dist-info/METADATA"))
    (entries,) = (text for name, text in content.items() if name.endswith(".dist-info/entry_points.txt"))
    assert "laptime = laptime.cli:main" in entries.decode()
    message = Parser().parsestr(metadata.decode())
    assert message["Name"] == "laptime" and message["Requires-Python"] == ">=3.11"
    needed = message.get_all("Requires-Dist", [])
    assert any(requirement.startswith("torch>=") for requirement in needed)
    assert {"onnx", "search", "wandb"} <= set(message.get_all("Provides-Extra", []))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_installed_it_trains_from_another_folder(wheel, tmp_path, monkeypatch):
    """In a new environment that uses the libraries of this one, but not the checkout."""
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    # Adds the libraries after its own packages. Reading this environment's .pth files would also add the checkout.
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    laptime = environment / "bin" / "laptime"

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=elsewhere, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    paths = run(
        str(python), "-c", "import laptime, hydra_plugins.laptime as plugins; print(laptime.__file__, plugins.__file__)"
    )
    assert paths.split() and all(path.startswith(str(site_packages)) for path in paths.split())
    assert run(str(laptime), "--version").startswith("laptime ")
    assert "experiment" in run(str(laptime), "train", "--help")
    short = [*QUICK, "dataset.limit=2000", "training.epochs=2"]
    run(str(laptime), *short, "strategy.world_size=2", "hydra.run.dir=one")
    record = json.loads((elsewhere / "one" / "run.json").read_text())
    assert record["status"] == "completed" and record["result"]["test_accuracy"] > 0.5
    run(
        str(laptime),
        "-m",
        *short,
        "seed=1,2",
        "measure.target_interval=0.9",
        "measure.max_repeats=2",
        "hydra.sweep.dir=two",
    )
    assert (elsewhere / "two" / "summary" / "report.html").stat().st_size > 1000
    assert "test accuracy" in run(str(python), "-m", "laptime.evaluate", "run=one").lower()
    run(str(python), "-m", "laptime.export", "run=one", "format=torch_export")
    assert list((elsewhere / "one").rglob("*.pt2"))
