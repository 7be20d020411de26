"""Runs, sweeps and ranks with a network in the folder of --config-dir."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.settings import NO_REPORT, QUICK

from laptime.config import security, vouching
from laptime.runner import fresh_processes

NET = (
    "from torch import nn\nfrom subprocess import run\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
    "        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
)
TINY = [*QUICK, "dataset.limit=500", "training.epochs=1"]


@pytest.fixture
def own_net(work_folder, monkeypatch) -> Path:
    monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    (work_folder / "conf/model").mkdir(parents=True)
    (work_folder / "conf/model/net.yaml").write_text("_target_: own_net_of_a_folder.Net\n")
    (work_folder / "conf/own_net_of_a_folder.py").write_text(NET)
    yield work_folder
    sys.modules.pop("own_net_of_a_folder", None)
    vouching.vouch_for(None)


@pytest.mark.soak
def test_a_resumed_sweep_needs_the_folder_again(own_net, call):
    overrides = ["model=net", *TINY, NO_REPORT, "seed=1", "hydra.sweep.dir=s"]
    done = call("-m", "--config-dir=conf", *overrides)
    assert done.returncode == 0, done.stderr
    record = own_net / "s/0/run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "failed"}))
    refused = call("sweep.resume=s")  # the folder that the sweep's own files name is not taken
    assert refused.returncode == 2 and "--config-dir" in refused.stderr
    assert call("sweep.resume=s", "-cd", "conf").returncode == 0
    assert json.loads(record.read_text())["status"] == "completed"


def test_searchpath_and_the_current_folder_vouch_for_nothing(own_net, call, monkeypatch):
    monkeypatch.setattr(fresh_processes, "preload", lambda: None)
    monkeypatch.syspath_prepend(str(own_net / "conf"))
    for arguments in (
        [f"hydra.searchpath=[file://{own_net}/conf]", "model=net"],
        ["model._target_=own_net_of_a_folder.Net", "~model.hidden_sizes", "~model.dropout"],
    ):
        refused = call(*arguments, *TINY)
        assert refused.returncode == 2 and "--config-dir" in refused.stderr
        assert "own_net_of_a_folder.Net: is not on the allow-list" in refused.stderr
    assert "own_net_of_a_folder" not in sys.modules
    refused = call("--config-dir", "conf", "model=net", "model._target_=own_net_of_a_folder.run", *TINY)
    assert refused.returncode == 2 and "own_net_of_a_folder imports run from subprocess" in refused.stderr
    assert "own_net_of_a_folder" not in sys.modules


@pytest.mark.soak  # tests/models/test_own_model.py runs ranks that Laptime starts
def test_a_rank_of_torchrun_uses_the_folder(own_net):
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    arguments = ["-cd", "conf", "model=net", *TINY, "hydra.run.dir=a"]
    command = [torchrun, "--standalone", "--nproc-per-node=1", "-m", "laptime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
