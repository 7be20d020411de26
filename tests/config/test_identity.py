"""What makes two runs the same: paths in the run's own directory don't tell it from another, known or not yet."""

from typing import Any

import pytest

from laptime.config.compose import compose, hydra_session, resolve, resolve_ahead, without_hydra
from laptime.config.identity import changed_since, hashed_config, snapshot
from laptime.record.hashes import config_hashes

pytestmark = pytest.mark.unit

OWN = "+callbacks.mine={_target_: a.B, dirpath: '${run_dir}/own', paths: ['${run_dir}', '${run_dir}/a b']}"
KEYS = ("profiler.dirpath", "callbacks.mine.dirpath", "callbacks.mine.paths")


def resolved(run_dir: str | None, *typed: str) -> dict[str, Any]:
    """None: the directory is not known yet."""
    with hydra_session() as hydra:
        cfg = without_hydra(compose(hydra, ["profiler=simple", *typed]))
    if run_dir is None:
        return resolve_ahead(cfg)
    cfg.run_dir = run_dir
    return resolve(cfg)


def hashed(config: dict[str, Any]) -> dict[str, Any]:
    return hashed_config(config, "cpu", 1, 1)


@pytest.mark.parametrize("run_dir", ["/runs/größe/1", "/runs/a b", "here", None])
def test_a_path_in_the_runs_directory_begins_there(run_dir):
    content = hashed(resolved(run_dir, OWN))
    assert [content[key] for key in KEYS] == ["/profiler", "/own", ["", "/a b"]]
    assert config_hashes(content) == config_hashes(hashed(resolved("/another", OWN)))


@pytest.mark.parametrize(
    ("run_dir", "value"),
    [("/runs/1", "/runs/12"), ("/runs/1", "a:/runs/1/x"), ("0", "0.5"), (None, "./x"), (None, ".")],
)
def test_any_other_text_stays_as_it_is(run_dir, value):
    """`0` or `.` as a directory changed numbers and the names of other folders."""
    content = hashed(resolved(run_dir, f"+callbacks.mine={{_target_: a.B, dirpath: '{value}'}}"))
    assert content["callbacks.mine.dirpath"] == value
    assert content["optimizer.lr"] == hashed(resolved("/another"))["optimizer.lr"]


def test_a_directory_that_is_not_known_yet_is_none():
    config = resolved(None, OWN)
    assert config.run_dir is None
    assert changed_since(snapshot(config), resolved("/runs/1", OWN)) == []
    assert changed_since(snapshot(config), resolved(None, OWN, "optimizer.lr=0.5")) == ["optimizer.lr"]
