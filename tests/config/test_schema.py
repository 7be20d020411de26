"""The typed configuration: it can't be changed, and another one is made of it."""

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from tests.support.configs import changed, composed

from laptime.config.schema import Config, StrategyConfig, closed_groups
from laptime.errors import UserError
from laptime.evaluation.keys import EvaluateConfig, LatencyConfig

pytestmark = pytest.mark.unit


def test_what_is_composed_is_typed_and_frozen():
    config = composed("strategy.world_size=2")
    assert isinstance(config, Config) and isinstance(config.strategy, StrategyConfig)
    assert config.strategy.world_size == 2
    with pytest.raises(FrozenInstanceError):
        config.seed = 7
    with pytest.raises(FrozenInstanceError):
        config.training.epochs = 7


def test_another_one_leaves_the_first_as_it_is():
    first = composed()
    second = replace(first, training=replace(first.training, epochs=99))
    assert (second.training.epochs, first.training.epochs == 99) == (99, False)
    assert second.as_dict() | {"training": None} == first.as_dict() | {"training": None}


def test_it_goes_into_another_process_as_it_is():
    assert pickle.loads(pickle.dumps(composed())) == composed()


def test_plain_values_are_a_copy():
    plain = composed().as_dict()
    plain["dataset"]["limit"] = plain["training"]["epochs"] = -1
    assert composed().dataset.get("limit") != -1 and composed().training.epochs != -1


def test_ranges_are_checked_in_every_group():
    with pytest.raises(UserError, match=r"^training\.epochs=0: "):
        changed(training={"epochs": 0}).check()
    with pytest.raises(UserError, match=r"^seed=-1: "):
        replace(composed(), seed=-1).check()


def test_closed_groups_are_those_that_are_dataclasses():
    assert set(closed_groups()) == {
        "device", "task", "task.score", "strategy", "training", "measure", "sweep", "security",
    }  # fmt: skip
    assert closed_groups(EvaluateConfig)["latency"] is LatencyConfig
