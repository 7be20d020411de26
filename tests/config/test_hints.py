"""What a message advises to type: options, names of files, flags, folders."""

import shlex

import pytest

from laptime.config import security, vouching
from laptime.config.compose import compose, hydra_session
from laptime.config.library_models import library_of
from laptime.config.quoting import quote_for_hydra
from laptime.errors import UserError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("overrides", "config_name", "words"),
    [
        (["model=resnet50"], None, "Type model=torchvision model.name=resnet50."),
        (["model=my_net"], None, "--config-dir FOLDER"),
        (["seed=2"], "nope", "--config-name=nope: "),
        ([], "nope", "--config-name=nope: "),
        (["multirun=true"], None, "-m."),
    ],
)
def test_a_wrong_option_or_file_is_refused_with_what_to_type(overrides, config_name, words):
    vouching.vouch_for(None)
    with hydra_session() as hydra, pytest.raises(UserError) as caught:
        compose(hydra, overrides, config_name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "library"),
    [("resnet18", "torchvision"), ("get_model", None), ("register_model", None), ("no-name", None), ("", None)],
)
def test_networks_of_libraries_are_found_without_importing_them(name, library):
    assert library_of(name) == library


def test_spaces_around_the_equals_sign_are_refused():
    with pytest.raises(UserError, match=r"no spaces around =\. Write training\.epochs=2$"):
        quote_for_hydra(["training.epochs = 2"])
    with hydra_session() as hydra, pytest.raises(UserError, match="no spaces around ="):
        compose(hydra, ["training.epochs", "=", "2"])


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["train.py", "--config-dir", "my conf", "seed=1"], "my conf"),
        (["train.py", "--config-dir=conf"], "conf"),
        (["train.py", "seed=1", "-cd", "conf"], "conf"),
        (["train.py", "seed=1"], None),
        (["train.py", "--config-dir"], None),
    ],
)
def test_the_folder_of_the_training_is_named(command, folder, monkeypatch):
    monkeypatch.setattr(security, "_FROM_ENVIRONMENT", ())
    vouching.vouch_for(None)
    assert security.config_dir_in(command) == folder
    with pytest.raises(UserError) as caught:
        security.check_targets({"model": {"_target_": "my_net.Net"}}, [], command)
    assert ("as for the training" in str(caught.value)) == (folder is not None)
    assert folder is None or f"--config-dir {shlex.quote(folder)}, as for the training" in str(caught.value)
