"""What makes two runs the same: paths in the run's own directory don't tell it from another, known or not yet."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.identity import changed_since, hashed_config, snapshot
from laptime.config.run_values import DIRECTORY_TO_COME, known_run
from laptime.config.schema import Config
from laptime.record.hashes import config_hashes

pytestmark = pytest.mark.unit

OWN = (
    "+callbacks.mine={_target_: a.B, dirpath: '${laptime:run_dir}/own', "
    "paths: ['${laptime:run_dir}', '${laptime:run_dir}/a b']}"
)
KEYS = ("profiler.dirpath", "callbacks.mine.dirpath", "callbacks.mine.paths")


def resolved(run_dir: str | None, *overrides: str) -> Config:
    """None: the directory is not known yet."""
    with hydra_session() as hydra:
        cfg = without_hydra(compose(hydra, ["profiler=simple", *overrides]))
    with nullcontext() if run_dir is None else known_run(Path(run_dir)):
        return resolve(cfg)


def hashed(run_dir: str | None, *overrides: str) -> dict[str, Any]:
    return hashed_config(resolved(run_dir, *overrides), "cpu", 1, 1, run_dir or DIRECTORY_TO_COME)


@pytest.mark.parametrize("run_dir", ["/runs/größe/1", "/runs/a b", "here", None])
def test_a_path_in_the_runs_directory_begins_there(run_dir):
    content = hashed(run_dir, OWN)
    assert [content[key] for key in KEYS] == ["/profiler", "/own", ["", "/a b"]]
    assert config_hashes(content) == config_hashes(hashed("/another", OWN))


@pytest.mark.parametrize(
    ("run_dir", "value"),
    [("/runs/1", "/runs/12"), ("/runs/1", "a:/runs/1/x"), ("0", "0.5"), (None, "./x"), (None, ".")],
)
def test_any_other_text_stays_as_it_is(run_dir, value):
    """`0` or `.` as a directory changed numbers and the names of other folders."""
    content = hashed(run_dir, f"+callbacks.mine={{_target_: a.B, dirpath: '{value}'}}")
    assert content["callbacks.mine.dirpath"] == value
    assert content["optimizer.lr"] == hashed("/another")["optimizer.lr"]


def test_a_snapshot_tells_which_keys_changed():
    config = resolved(None, OWN)
    assert changed_since(snapshot(config), resolved(None, OWN)) == []
    assert changed_since(snapshot(config), resolved(None, OWN, "optimizer.lr=0.5")) == ["optimizer.lr"]
