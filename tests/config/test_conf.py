"""Every file in conf/ composes, and what it describes can be built."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from laptime.config import security, targets
from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.composition import config_dir
from laptime.config.quoting import quote_for_hydra
from laptime.config.schema import Config
from laptime.config.validate import validate
from laptime.data.source import DataSource
from laptime.data.text import Text
from laptime.errors import UserError
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
    if path.parent.name not in ("hydra",) and path.stem != "own"  # it names no classes
)  # fmt: skip

FOR_TEXT = dict.fromkeys(("dataset=text", "model=gpt"), ("task=language_modeling",))

EXPERIMENTS = sorted(path for path in config_dir().glob("experiment/*.yaml") if path.stem != "none")


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., Config]]:
    """Composes overrides, all in one Hydra session."""
    with hydra_session() as hydra:
        yield lambda *overrides: resolve(without_hydra(compose(hydra, overrides)))


@functools.cache
def network_of(node: str, arguments: str) -> nn.Module:
    """Most options are of other groups, and have the same network."""
    return targets.build("model", json.loads(node), **json.loads(arguments))


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_builds(option, composed):
    config = composed(*FOR_TEXT.get(option, ()), option)
    validate(config)
    check_open_groups(config)
    security.check(config, [])  # all that Laptime's own options name may be imported
    data = targets.build("dataset", config.dataset)
    assert isinstance(data, DataSource)
    if isinstance(data, Text):
        data.vocabulary = "abc"
    network = network_of(json.dumps(config.model), json.dumps(data.network_arguments))
    module = build_module(config, network, describe("cpu", "cpu"), StopRequest(), {}, Rank(), 10)
    built = module.configure_optimizers()
    (group, *_) = built["optimizer"].param_groups
    assert group.get("initial_lr", group["lr"]) == config.optimizer["lr"]  # a schedule may start below it
    assert ("lr_scheduler" in built) == (config.scheduler["_target_"] is not None)
    assert len(build_callbacks(config)) == len(config.callbacks)
    assert len(_build_loggers(config, None)) == len(config.logger)


@pytest.mark.parametrize(
    "path",
    EXPERIMENTS,
    ids=lambda path: path.stem,
)
def test_experiment_opens_with_its_command(path):
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert second.startswith("# python train.py ") and f"experiment={path.stem}" in second


@pytest.mark.parametrize(
    ("group", "none"),
    [
        ("scheduler", {"_target_": None}), ("profiler", {"_target_": None}), ("logger", {}), ("callbacks", {}),
        ("experiment", None), ("search", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", ["none", "null"])
def test_none_and_null_mean_the_same_in_every_group(option, group, none, composed):
    config = composed(*quote_for_hydra([f"{group}={option}"]))
    if none is not None:
        assert config.open_group(group) == none
    else:
        assert config == composed()


@pytest.mark.parametrize("group", ["scheduler", "profiler", "logger", "callbacks"])
def test_a_file_can_say_null(group, work_folder):
    Path("experiment").mkdir()
    Path("experiment/mine.yaml").write_text(f"# @package _global_\ndefaults: [override /{group}: null]\n")
    with hydra_session(".") as hydra:
        config, with_none = (
            resolve(without_hydra(compose(hydra, [override]))) for override in ("experiment=mine", f"{group}=none")
        )
    assert config == with_none


def test_facts_about_a_run_are_not_in_its_configuration(composed):
    assert not {"run_dir", "run_label", "experiment_name", "runs_at_once"} & set(composed().as_dict())


def test_several_values_may_include_null():
    assert quote_for_hydra(["scheduler=null,step", "model=null"]) == ["scheduler=none,step", "model=null"]


def test_the_common_keys_of_data_sets_are_no_option():
    with hydra_session() as hydra:
        options = hydra.config_loader.get_group_options("dataset")
        assert options == ["cifar10", "fashion_mnist", "mnist", "synthetic", "text"]
        for option in ("base", "dataset_base"):
            with pytest.raises(UserError, match=f"dataset={option}: no such option.*of dataset: cifar10"):
                compose(hydra, [f"dataset={option}"])


def test_defaults_stand_in_one_place():
    for option in ("mnist", "fashion_mnist", "cifar10", "synthetic"):
        content = OmegaConf.load(config_dir() / "dataset" / f"{option}.yaml")
        assert "val_fraction" not in content and "pipeline" not in content
