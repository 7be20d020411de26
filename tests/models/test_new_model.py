"""The steps of "Add a model" in CONTRIBUTING.md are enough: a class and a file in conf/, and no registry."""

import shutil
import subprocess
import sys

import pytest
from tests.support.processes import ROOT
from tests.support.settings import QUICK

NETWORK = '''"""A network."""

from torch import Tensor, nn


class MyNet(nn.Module):
    def __init__(self, {shape}: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        channels, height, _ = {shape}
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * height, width), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
'''  # noqa: E501


@pytest.mark.soak
def test_a_class_and_a_file_in_conf_add_a_model(tmp_path, monkeypatch):
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    network = tmp_path / "src" / "laptime" / "models" / "my_net.py"
    option = "_target_: laptime.models.my_net.MyNet\nwidth: 8  # of the hidden layer\n"
    (tmp_path / "conf" / "model" / "my_net.yaml").write_text(option)
    command = [sys.executable, "train.py", "model=my_net", "dataset=synthetic", "dataset.num_train=300", *QUICK]

    def train():
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    network.write_text(NETWORK.format(shape="input_shape"))
    done = train()
    assert done.returncode == 0 and len(list(tmp_path.glob("outputs/*/*/run.json"))) == 1, done.stderr
    network.write_text(NETWORK.format(shape="image_shape"))
    done = train()
    assert done.returncode == 2 and "input_shape" in done.stderr
