"""export.py on real runs: each format gives the original's outputs, and what doesn't is not kept."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from laptime.errors import UserError
from laptime.export.__main__ import main
from laptime.export.wanted import wanted
from laptime.latency import Latency

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "dataset.limit=1000", "training.epochs=1", "device=cpu", "logger=none", "measure.breakdown=false",
    "measure.peak=false",
]  # fmt: skip
NO_LATENCY = "latency.batch_sizes=[]"
FEW_CALLS = ["latency.num_calls=5", "latency.warmup_calls=1", "latency.batch_sizes=1,16"]
HAS_TORCHAO = find_spec("torchao") is not None
NETS = '''
import torch
from torch import nn


class Branching(nn.Module):
    """Adds 1 where there is a single image: tracing freezes that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits + 1 if images.shape[0] == 1 else logits


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 10, 28), nn.Flatten())
'''
OWN = ["~model.hidden_sizes", "~model.dropout", "security.allowed_targets=[odd_nets]"]


def trained(folder: Path, *overrides: str) -> Path:
    (folder / "odd_nets.py").write_text(NETS)
    command = [sys.executable, str(ROOT / "train.py"), *QUICK, *overrides, "hydra.run.dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def report(run: Path) -> dict:
    return json.loads((run / "export" / "export.json").read_text())


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def kept_run(request, tmp_path_factory, cache_folder) -> Path:
    return trained(tmp_path_factory.mktemp(request.param), f"model={request.param}", "training.precision=bf16-mixed")


@pytest.fixture
def run(kept_run, work_folder) -> Path:
    """A copy that a test may change."""
    shutil.copytree(kept_run, work_folder / "run")
    return work_folder / "run"


def test_every_format_gives_the_outputs_of_the_original(run, capsys):
    assert main([f"run={run}", *FEW_CALLS]) == 0
    exports = {each["name"]: each for each in report(run)["exports"]}
    assert exports.keys() == {"onnx", "torch_export", "torchscript"}
    for each in exports.values():
        assert each["difference"] <= 1e-4 and each["batch_size"] == "any"
        assert each["test_accuracy"] == report(run)["original"]["test_accuracy"] and each["accuracy_cost"] == 0
        assert each["size_bytes"] == (run / "export" / each["file"]).stat().st_size
        assert [timed["batch_size"] for timed in each["latency"]] == [1, 16]
        assert all(timed["speedup"] > 0 for timed in each["latency"])
    printed = capsys.readouterr().out
    assert "torch advises against TorchScript" in printed and "all figures here are of float32" in printed


def test_files_work_without_laptime_for_any_batch(run, work_folder):
    assert main([f"run={run}", NO_LATENCY]) == 0
    code = """
import sys, numpy, onnxruntime, torch
images = torch.rand(7, 1, 28, 28)
session = onnxruntime.InferenceSession("run/export/model.onnx", providers=["CPUExecutionProvider"])
networks = [
    torch.export.load("run/export/model.pt2").module(),
    torch.jit.load("run/export/model.torchscript.pt"),
    lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
]
outputs = [network(part).detach() for part in (images, images[:1]) for network in networks]
assert all(torch.allclose(output, outputs[0], atol=1e-4) for output in outputs[:3])
assert all(torch.allclose(output, outputs[0][:1], atol=1e-4) for output in outputs[3:])
assert "laptime" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=work_folder)


def test_int8_is_smaller_and_its_accuracy_is_measured(run):
    assert main([f"run={run}", "int8=true", NO_LATENCY]) == 0
    exports = {each["name"]: each for each in report(run)["exports"]}
    assert ("torch_export int8" in exports) == HAS_TORCHAO
    original = report(run)["original"]["test_accuracy"]
    for format in ("onnx", "torchscript", *(["torch_export"] if HAS_TORCHAO else [])):
        whole, small = exports[format], exports[f"{format} int8"]
        assert small["size_bytes"] < 0.5 * whole["size_bytes"]
        assert len(small["int8_layers"]) == 3 and 0 < small["difference"] < 0.1
        assert small["accuracy_cost"] == original - small["test_accuracy"] and abs(small["accuracy_cost"]) < 0.02
        assert small["agreement"] > 0.97


def test_what_differs_more_than_the_tolerance_is_not_kept(run, capsys):
    assert main([f"run={run}", "format=onnx", "tolerance=1e-12", NO_LATENCY]) == 1
    assert "more than tolerance=1e-12" in capsys.readouterr().out
    assert not (run / "export").exists()


def test_tracing_that_froze_a_branch_is_found_out(work_folder, capsys):
    run = trained(work_folder, "model._target_=odd_nets.Branching", *OWN)
    typed = [f"run={run}", "security.allowed_targets=odd_nets", NO_LATENCY]
    assert main([*typed, "format=torchscript"]) == 1
    assert "torchscript: failed, its logits differ" in capsys.readouterr().out
    assert not (run / "export").exists()


def test_int8_without_a_linear_layer_fails_alone(work_folder, capsys):
    run = trained(work_folder, "model._target_=odd_nets.Convolutions", *OWN)
    typed = [f"run={run}", "security.allowed_targets=odd_nets", NO_LATENCY]
    assert main([*typed, "format=onnx", "int8=true"]) == 1
    assert [each["name"] for each in report(run)["exports"]] == ["onnx"]
    assert report(run)["failed"] == [{"name": "onnx int8", "reason": "the network has no linear layer"}]


def test_the_input_that_a_file_takes_is_described(run):
    assert main([f"run={run}", "format=onnx", "num_images=10", NO_LATENCY]) == 0
    described = report(run)
    assert described["input"]["shape"] == ["batch", 1, 28, 28]
    assert described["input"]["mean"] == pytest.approx([0.1307]) and described["dataset"]["num_images"] == 10
    assert described["exports"][0]["input"] == "images" and described["exports"][0]["opset"] >= 17


MISTAKES = {
    "run=run format=onx": "must be one of onnx, torch_export, torchscript, all",
    "run=run format=[]": "must be one or several",
    "run=run int8=some": "must be true or false",
    "run=run tolerance=0": "must be a finite number above 0",
    "run=run num_images=0": "must be at least 1",
    "run=run device=cpu": "unknown key",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_get_a_line_or_two(typed, work_folder, capsys):
    assert main(typed.split()) == 2
    errors = capsys.readouterr().err
    assert MISTAKES[typed] in errors and len(errors.splitlines()) <= 2
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("hidden", "typed", "words"),
    [
        ("onnx", "format=onnx", 'format=onnx: needs onnx: pip install "laptime[onnx]".'),
        ("onnxruntime", "format=torchscript,onnx", 'format=onnx: needs onnxruntime: pip install "laptime[onnx]".'),
        ("torchao", "format=torch_export int8=true", 'needs torchao: pip install "laptime[int8]".'),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(hidden, typed, words, work_folder):
    code = f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name == "{hidden}" else find(name, *rest))
from laptime.export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code, "run=x", *typed.split()], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_with_all_formats_those_without_packages_are_left_out(monkeypatch):
    monkeypatch.setattr("laptime.export.wanted.find_spec", lambda name: None if name == "onnxscript" else True)
    assert [each.name for each in wanted(["all"], int8=False) if each.missing is None] == [
        "torch_export",
        "torchscript",
    ]
    with pytest.raises(UserError, match="onnxscript"):
        wanted(["all", "onnx"], int8=False)


def test_speedup_is_the_median_of_the_rounds_ratios():
    from laptime.export.export import speedup

    def latency(*rounds: float) -> Latency:
        return Latency(1, 3, float(np.median(rounds)), None, None, 1.0, rounds)

    assert speedup(latency(4.0, 9.0, 6.0), latency(2.0, 3.0, 6.0)) == 2.0


def test_difference_is_a_share_of_the_largest_logit():
    from laptime.export.export import difference
    from laptime.predict import Predictions

    labels = torch.zeros(1, dtype=torch.int64)
    original = Predictions(torch.tensor([[-4.0, 1.0]]), labels, 0.0)
    assert difference(Predictions(torch.tensor([[-4.0, 2.0]]), labels, 0.0), original) == 0.25
