"""A signal during a trial step ends the run; it is not reported as an error of the network or optimizer."""

import threading
from types import SimpleNamespace

import pytest
import torch
from tests.support import sources
from tests.support.settings import TINY
from torch import nn

import laptime
from laptime.errors import Interrupted, UserError
from laptime.lap.flops import count_flops
from laptime.loggers.fail_safe import quiet_writer_threads
from laptime.training.build import build_network
from laptime.training.trial_step import try_network, try_optimizer

IMAGES = sources.images((1, 4, 4))


class Signaled(nn.Linear):
    """A layer during whose forward pass a signal arrives."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise Interrupted(2)


class SignaledStep(torch.optim.SGD):
    def step(self, closure=None):
        raise Interrupted(15)


@pytest.mark.unit
def test_a_signal_during_a_trial_step_ends_the_run_with_its_exit_code():
    network = Signaled(16, 3)
    with pytest.raises(Interrupted) as end:
        try_network(network, IMAGES)
    assert end.value.exit_code == 130
    with pytest.raises(Interrupted):
        count_flops(network, IMAGES.example(2, "meta")[0])
    built = {"optimizer": SignaledStep(network.parameters(), lr=0.1)}
    module = SimpleNamespace(configure_optimizers=lambda: built, parameters=network.parameters)
    with pytest.raises(Interrupted) as end:
        try_optimizer(module, {"optimizer": {"_target_": "torch.optim.SGD"}})
    assert end.value.exit_code == 143


@pytest.mark.unit
def test_except_exception_does_not_catch_a_signal():
    assert not issubclass(Interrupted, Exception)


def test_the_thread_excepthook_is_restored(monkeypatch, work_folder):
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    before = threading.excepthook
    laptime.run([*TINY, "logger=tensorboard", "training.epochs=1"])
    assert threading.excepthook is before
    with quiet_writer_threads():
        for name, error in (("_AsyncWriterThread", OSError("full")), ("Thread", OSError("full"))):
            thread = type(name, (threading.Thread,), {})()
            threading.excepthook(threading.ExceptHookArgs((type(error), error, None, thread)))
    assert [type(event.thread).__name__ for event in seen] == ["Thread"]


def test_models_whose_size_overflows_are_refused_as_too_large():
    node = {"_target_": "laptime.models.mlp.MLP", "hidden_sizes": [1518500513, 1518500513], "dropout": 0.0}
    with pytest.raises(UserError, match=r"model\.hidden_sizes=.* GB of weights, .* Use a smaller model\.$"):
        build_network(node, sources.images((1, 28, 28), 10))
