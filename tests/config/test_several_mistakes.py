"""Several wrong overrides on one command line: the message names one of them, or each foreign key, and never fails."""

from itertools import combinations

import pytest

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.errors import UserError

# One override of each kind of mistake.
MISTAKES = (
    "trainer.devices=2", "data=mnist", "a.b.c=1", "training.epoch=3", "+training.epoch=2", "model=nope",
    "scheduler=[]", "training.epochs=x", "training.epochs=[1", "lr", "~trainer.devices", "~training.epochs", "~nope",
    "data@x=mnist", "model@y=cnn", "experiment=nope", "training.precision=17", "seed=1,2", "+seed=2", "+model=cnn",
    "training={a:1}", "model={a:1}", "hydra.nope=3", "hydra/launcher=nope", "hydra.searchpath=[/nope]",
    "callbacks.nope.x=1", "seed=${nope}",
)  # fmt: skip


def refusal(hydra, overrides) -> str:
    with pytest.raises(UserError) as caught:
        resolve(without_hydra(compose(hydra, overrides)))
    return str(caught.value)


def names_one(message: str, overrides) -> bool:
    return any(text in message or text.partition("=")[0].lstrip("+~") in message for text in overrides)


@pytest.mark.unit
def test_every_foreign_key_is_answered_in_a_line_of_its_own():
    with hydra_session() as hydra:
        assert refusal(hydra, ["trainer.max_epochs=2", "data.batch_size=32", "seed=3"]).split("\n") == [
            "trainer.max_epochs=2: Laptime calls it training.epochs. Type training.epochs=2.",
            "data.batch_size=32: Laptime calls it training.batch_size. Type training.batch_size=32.",
        ]


@pytest.mark.unit
@pytest.mark.parametrize(
    "overrides",
    [
        ("training.epoch=3", "trainer.devices=2"),
        ("training.epochs=x", "model=nope", "~trainer.devices"),
    ],
)
def test_several_mistakes_are_refused(overrides):
    with hydra_session() as hydra:
        assert names_one(refusal(hydra, overrides), overrides)


@pytest.mark.soak
def test_any_two_and_many_threes_are_refused():
    with hydra_session() as hydra:
        for overrides in (*combinations(MISTAKES, 2), *list(combinations(MISTAKES, 3))[::40]):
            message = refusal(hydra, overrides)
            assert names_one(message, overrides) and len(message.splitlines()) <= 3, overrides
