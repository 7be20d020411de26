"""export.py on real runs: each format gives the original's outputs, and what doesn't is not kept."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import processes
from tests.support.settings import QUICK, TINY

from laptime.errors import UserError
from laptime.evaluation.find_run import find_run
from laptime.evaluation.predict import Predictions, predict
from laptime.evaluation.trained_run import open_run
from laptime.exporting.export import difference, speedup
from laptime.exporting.main import main
from laptime.exporting.targets import export_targets
from laptime.machine.device import describe
from laptime.measure.latency import Latency

MNIST = (*QUICK, "dataset.limit=1000", "training.epochs=1", "training.precision=bf16-mixed")
NO_LATENCY = "latency.batch_sizes=[]"
FEW_CALLS = ["latency.num_calls=5", "latency.warmup_calls=1", "latency.batch_sizes=1,16"]
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason='needs torchao: pip install "laptime[int8]"')


@dataclass(frozen=True)
class Exported:
    """A run of which all formats were exported, int8 too: its directory and what the command printed."""

    run: Path
    printed: str

    @cached_property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run / "export" / "export.json").read_text())
        return content

    @cached_property
    def exports(self) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in self.report["exports"]}

    @cached_property
    def original(self) -> Predictions:
        network, data = open_run(find_run(str(self.run), "last", [])).load(describe("cpu", "cpu"))
        return predict(network, data.test_batches(1))

    def fraction_in_doubt(self, apart: float) -> float:
        """Share of the images whose class can change where no logit differs by more than `apart`.

        The largest logit can fall by so much, and the second rise by so much. `apart` is a fraction of it.
        """
        first, second = self.original.logits.topk(2, dim=1).values.unbind(1)
        in_doubt = first - second <= 2 * apart * self.original.logits.abs().max() * (1 + 1e-6)
        return in_doubt.double().mean().item()


@pytest.fixture(scope="module")
def export_of(tmp_path_factory, trained) -> Callable[[str], Exported]:
    """export_of(model): all its formats, exported once."""

    @cache
    def export(model: str) -> Exported:
        run = tmp_path_factory.mktemp(model) / "run"
        shutil.copytree(trained(*MNIST, f"model={model}"), run)
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
            patched.setenv("COLUMNS", "200")
            assert main([f"run={run}", "format=all", "int8=true", *FEW_CALLS]) == 0
        return Exported(run, printed.getvalue())

    return export


@pytest.fixture(params=["mlp", pytest.param("cnn", marks=pytest.mark.soak)])
def exported(request, export_of) -> Exported:
    return export_of(request.param)


@pytest.fixture
def tiny_run(trained, work_folder) -> Callable[..., Path]:
    """tiny_run(class): a copy of a run of a class in networks_to_export.py."""

    def copy(name: str) -> Path:
        target = f"model._target_=networks_to_export.{name}"
        overrides = (*TINY, "training.epochs=1", target, "~model.hidden_sizes", "~model.dropout")
        shutil.copytree(trained(*(text for text in overrides if "hidden_sizes=" not in text)), work_folder / "run")
        return work_folder / "run"

    return copy


def report(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "export" / "export.json").read_text())
    return content


def test_every_format_gives_the_outputs_of_the_original(exported):
    assert exported.original.accuracy == exported.report["original"]["test_accuracy"]
    for name in ("onnx", "torch_export", "torchscript"):
        entry = exported.exports[name]
        assert entry["difference"] <= 1e-4 and entry["batch_size"] == "any"
        in_doubt = exported.fraction_in_doubt(entry["difference"])
        assert in_doubt < 0.01 and entry["agreement"] >= 1 - in_doubt and abs(entry["accuracy_cost"]) <= in_doubt
        assert entry["size_bytes"] == (exported.run / "export" / entry["file"]).stat().st_size
        assert [timed["batch_size"] for timed in entry["latency"]] == [1, 16]
        assert all(timed["speedup"] > 0 for timed in entry["latency"])
    assert "PyTorch has deprecated TorchScript" in exported.printed
    assert "all figures here are for float32" in exported.printed


def _check_int8(exported: Exported, format: str) -> None:
    whole, small = exported.exports[format], exported.exports[f"{format} int8"]
    assert small["size_bytes"] < 0.5 * whole["size_bytes"]
    # A tensor's values are rounded to 127 steps or more, which span about 8 standard deviations: an error of
    # 8 / 127 / sqrt(12) = 2% of one in each layer's weights, less in its inputs. Three layers make 4% of the logits'
    # standard deviation, 4 times that in the worst of 10,000 logits; the largest logit is 3 of them. Twice that:
    assert len(small["int8_layers"]) == 3 and 0 < small["difference"] < 0.1
    assert small["accuracy_cost"] == exported.report["original"]["test_accuracy"] - small["test_accuracy"]
    in_doubt = exported.fraction_in_doubt(small["difference"])
    assert small["agreement"] >= 1 - in_doubt and abs(small["accuracy_cost"]) <= in_doubt


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_int8_is_smaller_and_its_accuracy_is_measured(exported, format):
    _check_int8(exported, format)


@needs_torchao
def test_int8_of_torch_export_is_smaller_and_its_accuracy_is_measured(exported):
    _check_int8(exported, "torch_export")


def test_exactly_what_has_its_packages_is_exported(exported):
    everything = {f"{format}{int8}" for format in ("onnx", "torch_export", "torchscript") for int8 in ("", " int8")}
    left_out = {entry["name"]: entry["reason"] for entry in exported.report["left_out"]}
    assert exported.exports.keys() | left_out.keys() == everything and exported.report["failed"] == []
    if find_spec("torchao") is None:
        assert left_out == {"torch_export int8": 'needs torchao: pip install "laptime[int8]"'}
    else:
        assert left_out == {}


@pytest.mark.soak
def test_files_work_without_laptime_for_any_batch(export_of):
    code = """
import sys, onnxruntime, torch
images = torch.rand(7, 1, 28, 28)
for folder in sys.argv[1:]:
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    networks = [
        torch.export.load(f"{folder}/model.pt2").module(),
        torch.jit.load(f"{folder}/model.torchscript.pt"),
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
    ]
    outputs = [network(part).detach() for part in (images, images[:1]) for network in networks]
    assert all(torch.allclose(output, outputs[0], atol=1e-4) for output in outputs[:3])
    assert all(torch.allclose(output, outputs[0][:1], atol=1e-4) for output in outputs[3:])
assert "laptime" not in sys.modules
"""
    folders = [str(export_of(model).run / "export") for model in ("mlp", "cnn")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *folders], capture_output=True, text=True,
        timeout=processes.DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_differs_more_than_the_tolerance_is_not_kept(tiny_run, capsys):
    run = tiny_run("AddsOneToASingleImage")  # tracing freezes its branch
    arguments = [f"run={run}", "security.allowed_targets=networks_to_export", "format=torchscript", NO_LATENCY]
    assert main(arguments) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "torchscript: failed, its logits differ" in shown and "more than tolerance=0.0001" in shown
    assert not (run / "export").exists()
    assert main([*arguments, "tolerance=1000"]) == 0
    (kept,) = report(run)["exports"]
    assert kept["difference"] > 1e-4 and (run / "export" / kept["file"]).exists()


def test_int8_without_a_linear_layer_fails_alone(tiny_run, capsys):
    run = tiny_run("OneConvolution")
    arguments = [f"run={run}", "security.allowed_targets=networks_to_export", NO_LATENCY]
    assert main([*arguments, "format=onnx", "int8=true"]) == 1
    assert [entry["name"] for entry in report(run)["exports"]] == ["onnx"]
    assert report(run)["failed"] == [{"name": "onnx int8", "reason": "the network has no linear layer"}]


def test_the_input_that_a_file_takes_is_described(exported):
    described = exported.report
    assert described["input"]["shape"] == ["batch", 1, 28, 28]
    assert described["input"]["mean"] == pytest.approx([0.1307]) and described["dataset"]["num_images"] == 1000
    assert exported.exports["onnx"]["input"] == "images" and exported.exports["onnx"]["opset"] >= 17


def test_only_so_many_images_are_compared(tiny_run):
    run = tiny_run("OneConvolution")
    allowed = "security.allowed_targets=networks_to_export"
    assert main([f"run={run}", allowed, "format=torchscript", "num_images=10", NO_LATENCY]) == 0
    assert report(run)["dataset"]["num_images"] == 10
    assert (10 * report(run)["exports"][0]["test_accuracy"]).is_integer()


MISTAKES = {
    "run=run format=onx": "must be one of onnx, torch_export, torchscript, all",
    "run=run format=[]": "must be one or more",
    "run=run int8=some": "must be true or false",
    "run=run tolerance=0": "must be a finite number above 0",
    "run=run num_images=0": "must be at least 1",
    "run=run device=cpu": "unknown key",
}


@pytest.mark.unit
@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_get_a_line_or_two(arguments, work_folder, capsys):
    assert main(arguments.split()) == 2
    errors = capsys.readouterr().err
    assert MISTAKES[arguments] in errors and len(errors.splitlines()) <= 2
    assert list(work_folder.iterdir()) == []


@pytest.fixture
def hide(monkeypatch) -> Iterator[Callable[[str], None]]:
    """hide(package): as where it isn't installed."""
    find = PathFinder.find_spec

    def hide_one(package: str) -> None:
        def find_others(cls: Any, name: str, *rest: Any) -> Any:
            return None if name == package else find(name, *rest)

        monkeypatch.setattr(PathFinder, "find_spec", classmethod(find_others))
        monkeypatch.delitem(sys.modules, package, raising=False)

    return hide_one


@pytest.mark.unit
@pytest.mark.parametrize(
    ("hidden", "arguments", "words"),
    [
        ("onnx", "format=onnx", 'format=onnx: needs onnx: pip install "laptime[onnx]".'),
        ("onnxruntime", "format=torchscript,onnx", 'format=onnx: needs onnxruntime: pip install "laptime[onnx]".'),
        ("torchao", "format=torch_export int8=true", 'needs torchao: pip install "laptime[int8]".'),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(hidden, arguments, words, hide, capsys):
    hide(hidden)
    assert main(["run=x", *arguments.split()]) == 2  # before it is seen that there is no run
    errors = capsys.readouterr().err
    assert words in errors and len(errors.splitlines()) == 1


@pytest.mark.unit
def test_with_all_formats_those_without_packages_are_left_out(hide):
    hide("onnxscript")
    made = [target.name for target in export_targets(["all"], int8=False) if target.missing is None]
    assert made == ["torch_export", "torchscript"]
    with pytest.raises(UserError, match="onnxscript"):
        export_targets(["all", "onnx"], int8=False)


@pytest.mark.unit
def test_speedup_is_the_median_of_the_rounds_ratios():
    def latency(*rounds: float) -> Latency:
        return Latency(1, 3, float(np.median(rounds)), None, None, 1.0, rounds)

    assert speedup(latency(4.0, 9.0, 6.0), latency(2.0, 3.0, 6.0)) == 2.0


@pytest.mark.unit
def test_difference_is_a_share_of_the_largest_logit():
    labels = torch.zeros(1, dtype=torch.int64)
    original = Predictions(torch.tensor([[-4.0, 1.0]]), labels, 0.0)
    assert difference(Predictions(torch.tensor([[-4.0, 2.0]]), labels, 0.0), original) == 0.25
