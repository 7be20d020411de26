"""Every file in conf/ composes, and what it describes can be built."""

import functools
import json
from collections.abc import Callable, Iterator

import pytest
from omegaconf import OmegaConf
from torch import nn

from laptime.config import security, targets
from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.composition import config_dir
from laptime.config.schema import Config
from laptime.config.validate import validate
from laptime.data.image_data import ImageData
from laptime.machine.device import describe
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.runner.trackers import _build_loggers
from laptime.training.build import build_callbacks, build_module
from laptime.training.open_groups import check_open_groups

pytestmark = pytest.mark.unit

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in config_dir().glob("*/*.yaml")
    if path.parent.name not in ("hydra",)
)  # fmt: skip


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., Config]]:
    """Composes overrides, all in one Hydra session."""
    with hydra_session() as hydra:
        yield lambda *overrides: resolve(without_hydra(compose(hydra, overrides)))


@functools.cache
def network_of(node: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Most options are of other groups, and have the same network."""
    return targets.build("model", json.loads(node), input_shape=shape, num_classes=num_classes)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_builds(option, composed):
    config = composed(option)
    validate(config)
    check_open_groups(config)
    security.check(config, [])  # all that Laptime's own options name may be imported
    data = targets.build("dataset", config.dataset)
    assert isinstance(data, ImageData)
    network = network_of(json.dumps(config.model), data.image_shape, data.num_classes)
    module = build_module(config, network, describe("cpu", "cpu"), StopRequest(), {}, Rank(), 10)
    built = module.configure_optimizers()
    (group, *_) = built["optimizer"].param_groups
    assert group.get("initial_lr", group["lr"]) == config.optimizer["lr"]  # a schedule may start below it
    assert ("lr_scheduler" in built) == (config.scheduler["_target_"] is not None)
    assert len(build_callbacks(config)) == len(config.callbacks)
    assert len(_build_loggers(config, None)) == len(config.logger)


@pytest.mark.parametrize("path", sorted(config_dir().glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_experiment_opens_with_its_command(path):
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert second.startswith("# python train.py ") and f"experiment={path.stem}" in second


def test_defaults_stand_in_one_place():
    for option in ("fashion_mnist", "cifar10", "synthetic"):
        own = OmegaConf.load(config_dir() / "dataset" / f"{option}.yaml")
        assert "val_fraction" not in own and "pipeline" not in own
