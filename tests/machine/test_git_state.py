"""The state of the code in a run's record: commit, differences from it and their hash, in a real, small repository."""

import subprocess
from pathlib import Path

import pytest
from tests.support.settings import TINY

from laptime.machine import environment
from laptime.machine.environment import git_state
from laptime.record.files import read_record
from laptime.record.schema import Git

NOTHING = Git()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, of package/code.py and .gitignore."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(work_folder))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    folder = work_folder / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package/code.py").write_text("one = 1\n")
    (folder / ".gitignore").write_text("ignored*\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "First")
    return folder


def test_a_clean_checkout_has_only_a_commit(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state(repository / "package") == Git(commit=commit, dirty=False)
    (repository / "package/ignored.py").write_text("two = 2\n")
    assert git_state(repository / "package").dirty is False


def test_a_change_has_a_hash_until_it_is_committed(repository):
    package, commit = repository / "package", git(repository, "rev-parse", "HEAD")
    hashes = []
    for value in (2, 3, 2):
        (package / "code.py").write_text(f"one = {value}\n")
        state = git_state(package)
        assert (state.commit, state.dirty) == (commit, True)
        hashes.append(state.diff_hash)
    assert hashes[0] == hashes[2] != hashes[1]
    git(repository, "add", ".")
    assert git_state(package).diff_hash == hashes[0], "staged or not is the same code"
    git(repository, "commit", "-q", "-m", "Second")
    after = git_state(package)
    assert after.commit != commit and after == Git(commit=after.commit, dirty=False)


def test_new_files_count_by_name_and_content(repository):
    package = repository / "package"
    hashes = []
    for name, content in (("new.py", "a"), ("new.py", "b"), ("other.py", "b")):
        (package / name).write_text(content)
        state = git_state(package)
        assert state.dirty is True
        hashes.append(state.diff_hash)
        (package / name).unlink()
    assert len(set(hashes)) == 3 and None not in hashes
    assert git_state(package).dirty is False


def test_everything_is_null_outside_of_a_repository(work_folder, repository):
    assert git_state(work_folder) == NOTHING
    (repository / "ignored").mkdir()
    (repository / "ignored/code.py").touch()
    assert git_state(repository / "ignored") == NOTHING, "a package that is installed below a repository"


def test_everything_is_null_without_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert git_state(repository / "package") == NOTHING


def test_a_run_records_the_git_state_of_laptime(trained):
    recorded = read_record(trained(*TINY, "training.epochs=1"))["git"]
    assert set(recorded) == {"commit", "dirty", "diff_hash"}
    package = Path(environment.__file__).parent
    if git_state(package).commit is None:  # Laptime is installed, or unpacked from an archive
        assert recorded == NOTHING
    else:
        assert git(package, "cat-file", "-t", recorded["commit"]) == "commit"
        assert (recorded["diff_hash"] is not None) is recorded["dirty"]
