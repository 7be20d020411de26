"""Every test trains in a folder of its own; MNIST is unpacked once for all of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train.py"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(work_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command in a process of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(TRAIN), *arguments],
            capture_output=True,
            text=True,
            cwd=work_folder,
            env=os.environ | environment,
            timeout=600,
        )

    return run


@pytest.fixture
def the_run(work_folder: Path) -> Callable[[], tuple[Path, dict[str, Any]]]:
    """The one run below the work folder: its directory and its record."""

    def find() -> tuple[Path, dict[str, Any]]:
        (path,) = work_folder.rglob("run.json")
        return path.parent, json.loads(path.read_text())

    return find
