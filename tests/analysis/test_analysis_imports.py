"""The analysis loads only the packages that it needs, because they are slow to import."""

import subprocess
import sys
from pathlib import Path

import pytest

from laptime.analysis.__main__ import main

SLOW_PACKAGES = {"torch", "lightning", "pytorch_lightning", "hydra", "omegaconf", "matplotlib", "PIL", "scipy"}
CODE = """
import sys
from laptime.analysis.__main__ import main
code = main(sys.argv[1:])
print("loaded:", *sys.modules)
sys.exit(code)
"""


def loaded(*arguments: str) -> set[str]:
    """Run an analysis in a new interpreter, and return the slow packages that it has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return SLOW_PACKAGES & set(done.stdout.rpartition("loaded: ")[2].split())


@pytest.fixture
def sweep(write, work_folder):
    """Two repeats on one and on two ranks, with enough epochs for a trend."""
    for world_size in (1, 2):
        for seed in (1, 2):
            times = [9.0, *(1.0 + seed / 10 - epoch / 100 for epoch in range(6))]
            write(Path(f"sweep/{world_size}{seed}"), times, world_size, seed)
    return Path("sweep")


def test_an_analysis_without_plots_loads_neither_matplotlib_nor_scipy(sweep):
    """The sweep has intervals and a trend, but nothing to fit or to test."""
    assert loaded(str(sweep), "--no-plots") == set()
    tables = [(sweep / "summary" / name).read_text() for name in ("scaling.csv", "groups.csv")]
    assert main([str(sweep)]) == 0
    assert [(sweep / "summary" / name).read_text() for name in ("scaling.csv", "groups.csv")] == tables


def test_plots_load_no_torch_and_no_hydra(sweep):
    assert loaded(str(sweep)) == {"matplotlib", "PIL"}
