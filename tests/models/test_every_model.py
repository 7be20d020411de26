"""Properties of every option of model: sizes, shapes, gradients, FLOPs, and that it trains."""

import functools
import re
from typing import Any

import pytest
import torch
from tests.support import processes
from tests.support.configs import composed
from tests.support.settings import QUICK
from torch import nn

import laptime
from laptime.config import targets
from laptime.config.composition import config_dir
from laptime.errors import TrainingFailed
from laptime.lap.flops import count_flops
from laptime.record.files import read_epochs
from laptime.training.build import network_name

README = (processes.ROOT / "README.md").read_text(encoding="utf-8")
# The README's table of models: parameters and FLOPs per sample, in millions, on MNIST.
TABLE = {
    name: (int(parameters.replace(",", "")), flops)
    for name, parameters, flops in re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) \| ([\d.,]+) M \|", README, re.MULTILINE)
}
OPTIONS = sorted(path.stem for path in (config_dir() / "model").glob("*.yaml"))
FOR_TEXT_ALONE = ["gpt"]  # see test_gpt.py
MODELS = [name for name in OPTIONS if name not in FOR_TEXT_ALONE]
LARGE = ["timm", "efficientnet_b0", "resnet18", "torchvision"]
# Test accuracy that 5 epochs on 5,000 images reach, as a floor. Measured with seeds 1, 2 and 3: 85.7 to 86.9%, 91.9 to
# 93.0%, 87.9 to 90.5% and 83.0 to 85.0%.
ACCURACY = {"logistic_regression": 0.82, "lstm": 0.88, "transformer": 0.83, "vit": 0.77}
SMALL = [*QUICK, "dataset=synthetic", "dataset.shape=[1,16,16]", "dataset.num_test=20", "training.batch_size=16"]


@functools.cache
def node_of(model: str) -> dict[str, Any]:
    return composed(f"model={model}").model


def build(model: str, shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    return targets.build("model", node_of(model), nn.Module, input_shape=shape, num_classes=num_classes)


@pytest.mark.unit
def test_the_readme_lists_every_option():
    assert sorted(TABLE) == MODELS
    assert all(f"`{name}`" in README for name in FOR_TEXT_ALONE)


@pytest.mark.unit
@pytest.mark.parametrize("model", MODELS)
def test_size_and_flops_on_mnist_match_the_readme(model):
    """A parameter that is used once takes six operations, two of them in the forward pass. Embeddings take fewer."""
    network = build(model)
    parameters, flops = TABLE[model]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    counted = count_flops(network, torch.zeros(2, 1, 28, 28, device="meta"))
    assert counted is not None and f"{counted / 1e6:,.2f}" == flops
    assert counted > 4 * (parameters - 1024 * len(list(network.parameters())))


@pytest.mark.unit
@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_named_by_its_option(model):
    with torch.device("meta"):
        assert network_name(build(model)).split()[0] == model


@pytest.mark.unit
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("shape", "num_classes"), [((3, 32, 32), 100), ((1, 9, 15), 2), ((4, 64, 48), 3)], ids=str)
def test_logits_have_one_row_per_image_and_one_column_per_class(model, shape, num_classes):
    with torch.device("meta"):
        assert build(model, shape, num_classes)(torch.zeros(5, *shape)).shape == (5, num_classes)


@pytest.mark.unit
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_gets_a_gradient(model):
    torch.manual_seed(0)
    network = build(model)
    network(torch.rand(4, 1, 28, 28)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.unit
@pytest.mark.parametrize("model", MODELS)
def test_in_evaluation_the_logits_of_an_image_do_not_depend_on_the_batch(model):
    torch.manual_seed(0)
    network, images = build(model).eval(), torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        alone = network(images[:2])
        atol = min(1e-5, 1e-4 * float(alone.abs().max()))  # efficientnet_b0's logits are about 1e-13 before training
        torch.testing.assert_close(network(images)[:2], alone, rtol=1e-4, atol=atol)


@pytest.mark.unit
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_flops_of_grouped_convolutions(kind, groups):
    network = nn.Sequential(nn.Conv2d(1, 8, 1), kind(8, 16, 3, padding=1, groups=groups))
    alone = nn.Sequential(nn.Conv2d(1, 8, 1))
    pixels = 10 * 10
    images = torch.zeros(2, 1, 10, 10, device="meta")
    added_flops = count_flops(network, images) - count_flops(alone, images)
    assert added_flops == 3 * 2 * pixels * 9 * 8 * 16 // groups


@pytest.mark.soak
@pytest.mark.parametrize("model", ACCURACY)
def test_it_learns_mnist(model, work_folder):
    some = ["dataset.limit=5000", "training.epochs=5", "training.batch_size=32", "optimizer.lr=0.002"]
    record = laptime.run([*QUICK, *some, f"model={model}"])
    assert record["result"]["test_accuracy"] > ACCURACY[model]


@pytest.mark.parametrize("model", [pytest.param(name, marks=pytest.mark.soak) for name in LARGE[:-1]] + LARGE[-1:])
def test_a_large_model_starts_to_learn(model, work_folder):
    """On a few small images. Its accuracy on MNIST takes minutes to measure; see benchmarks/models.py."""
    few = ["dataset.num_train=60", "training.epochs=4", "optimizer.lr=0.001"]
    record = laptime.run([*SMALL, *few, f"model={model}", "hydra.run.dir=here"])
    losses = read_epochs(work_folder / "here")["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert record["model"]["num_parameters"] == TABLE[model][0]
    assert record["model"]["flops_per_sample"] == count_flops(build(model), torch.zeros(2, 1, 16, 16, device="meta"))


@pytest.mark.parametrize(
    "model", ["lstm", "transformer", *(pytest.param(name, marks=pytest.mark.soak) for name in ("vit", "torchvision"))]
)
def test_it_trains_in_bfloat16_as_in_float32(model, work_folder):
    """Three steps of plain SGD on one batch. bfloat16 has 8 bits, so losses and updates differ by a few percent.

    They would diverge over many steps, or with Adam, which amplifies small gradients.
    """
    overrides = [*SMALL, "dataset.num_train=125", "training.batch_size=100", "training.epochs=3", f"model={model}"]
    overrides += ["optimizer=sgd", "optimizer.lr=0.05", "optimizer.momentum=0", "optimizer.nesterov=false"]
    overrides += ["optimizer.weight_decay=0"]
    overrides += [] if model == "torchvision" else ["model.dropout=0"]
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        laptime.run([*overrides, f"training.precision={precision}", f"hydra.run.dir={precision}"])
        losses[precision] = read_epochs(work_folder / precision)["train_loss"].tolist()
    whole, half = losses["32-true"], losses["bf16-mixed"]
    assert half != whole, "the precision is used"
    assert half == pytest.approx(whole, rel=0.02)
    assert whole[0] > whole[2] and half[0] - half[2] == pytest.approx(whole[0] - whole[2], rel=0.25)


@pytest.mark.soak
def test_two_ranks_average_strided_weights_in_shared_memory(work_folder):
    overrides = ["strategy.world_size=2", "model=torchvision", "dataset.num_train=40", "training.epochs=1"]
    for hook in ("none", "shared_memory"):
        done = processes.run(*SMALL, *overrides, f"strategy.comm_hook={hook}", f"hydra.run.dir={hook}")
        assert done.returncode == 0, done.stderr
    one, other = (read_epochs(work_folder / hook)["train_loss"].tolist() for hook in ("none", "shared_memory"))
    assert one == other


@pytest.mark.soak
@pytest.mark.parametrize("comm_hook", ["none", "shared_memory"])
def test_two_ranks_train_batch_norm_and_strided_weights_and_resume(comm_hook, work_folder):
    two = ["dataset.num_train=80", "strategy.world_size=2", f"strategy.comm_hook={comm_hook}", "model=torchvision"]

    def run(name: str, *overrides: str) -> None:
        done = processes.run(*SMALL, *two, *overrides, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr

    run("whole", "training.epochs=2")
    run("first", "training.epochs=1")
    run("second", "training.epochs=2", "training.checkpoint=first")
    second = read_epochs(work_folder / "second")["train_loss"]
    assert len(second) == 2
    assert second.tolist() == read_epochs(work_folder / "whole").query("epoch == 1")["train_loss"].tolist()


@pytest.mark.soak
def test_a_single_image_in_the_last_step_is_refused_for_batch_norm(work_folder):
    """One sample more per batch trains. The record names the network of the library."""
    overrides = [*SMALL, "dataset.num_train=100", "training.epochs=1", "model=torchvision"]
    with pytest.raises(TrainingFailed, match=r"BatchNorm .* training\.batch_size"):
        laptime.run([*overrides, "training.batch_size=79"])
    record = laptime.run([*overrides, "training.batch_size=78", "model.name=shufflenet_v2_x0_5"])
    assert record["status"] == "completed"
    assert record["model"]["name"] == "torchvision shufflenet_v2_x0_5"
