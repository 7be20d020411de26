"""CONTRIBUTING, workflows and forms: what they name exists, and what they list is complete."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _layers() -> set[str]:
    lines = next(
        contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"
    )
    return {room.strip() for line in lines["layers"] for room in line.split("|")}


def test_contributing_lists_every_room():
    listed = {name.strip("/") for name in re.findall(r"`([a-z_]+(?:/|\.py))`", CONTRIBUTING)}
    rooms = {
        path.name for path in (ROOT / "src" / "laptime").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    modules = {path.name for path in (ROOT / "src" / "laptime").glob("*.py") if not path.name.startswith("__")}
    assert rooms <= listed
    assert modules <= listed
    assert rooms | {Path(name).stem for name in modules} | {"__main__"} == _layers()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in WORKFLOWS)])
def test_make_targets_that_are_named_exist(name):
    named = set(re.findall(r"(?:^    |run: )make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert named <= TARGETS
    assert named


def test_ci_run_does_what_make_check_does():
    (check,) = re.findall(r"^check: +; (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(check.split(" && ")) <= set((ROOT / ".ci" / "run").read_text().splitlines())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_limit_their_jobs_and_their_rights(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    files = [word for word in path.read_text().split() if word.startswith((".github/", "tests/"))]
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_nightly_job_lifts_every_upper_bound_of_what_it_tests():
    lifted = {
        re.split(r"[<>=]", line)[0] for line in (ROOT / ".github" / "newest.txt").read_text().split() if ">=" in line
    }
    bounded = {re.split(r"[<>=\[]", line)[0] for line in PYPROJECT["project"]["dependencies"] if "<" in line}
    assert bounded <= lifted


def test_paths_that_contributing_names_exist():
    paths = re.findall(r"`((?:src|tests|docs|conf|benchmarks|\.ci|\.github)/[\w./]*)`", CONTRIBUTING)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists() and "my_net" not in path] == []


@pytest.mark.parametrize("form", ["bug", "hardware"])
def test_issue_forms_are_complete(form):
    content = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= set(content)
    ids = [field["id"] for field in content["body"]]
    assert len(ids) == len(set(ids))
    assert all({"label"} <= set(field["attributes"]) for field in content["body"])
